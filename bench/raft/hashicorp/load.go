package main

import (
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const applyTimeout = 10 * time.Second

const (
	warmingUp int32 = iota
	measuring
	stopped
)

// client is one closed loop: it asks again as soon as it was answered.
type client struct {
	acknowledged int
	latencies    []time.Duration
	failure      error
}

func (c *client) run(node *raft.Raft, payload []byte, phase *atomic.Int32) {
	for phase.Load() != stopped {
		asked := time.Now()
		if err := node.Apply(payload, applyTimeout).Error(); err != nil {
			c.failure = fmt.Errorf("an apply was not acknowledged: %w", err)
			return
		}
		c.acknowledged++
		if phase.Load() == measuring {
			c.latencies = append(c.latencies, time.Since(asked))
		}
	}
}

// drive keeps InFlight operations under way for WarmUpSeconds and then Seconds, and reports what was answered in the
// second span. It says when that span begins and ends, because the processor time of all nodes is read from outside.
func drive(node *raft.Raft, asked request, report *reporter) error {
	payload := make([]byte, asked.PayloadBytes)
	if _, err := rand.Read(payload); err != nil {
		return err
	}
	var phase atomic.Int32
	var running sync.WaitGroup
	clients := make([]client, asked.InFlight)
	for i := range clients {
		running.Add(1)
		go func(c *client) {
			defer running.Done()
			c.run(node, payload, &phase)
		}(&clients[i])
	}

	time.Sleep(seconds(asked.WarmUpSeconds))
	began := time.Now()
	phase.Store(measuring)
	report.event("measuring", nil)
	time.Sleep(seconds(asked.Seconds))
	phase.Store(stopped)
	measured := time.Since(began)
	report.event("stopped", nil)
	running.Wait()

	var acknowledged int
	var latencies []time.Duration
	for i := range clients {
		if clients[i].failure != nil {
			return clients[i].failure
		}
		acknowledged += clients[i].acknowledged
		latencies = append(latencies, clients[i].latencies...)
	}
	slices.Sort(latencies)
	report.event("measured", map[string]any{
		"ops":          len(latencies),
		"seconds":      measured.Seconds(),
		"p50_ms":       milliseconds(percentile(latencies, 50)),
		"p99_ms":       milliseconds(percentile(latencies, 99)),
		"acknowledged": acknowledged,
	})
	return nil
}

// percentile is the nearest rank of sorted samples; zero if there are none.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*percent + 99) / 100
	return sorted[max(rank, 1)-1]
}

func seconds(count float64) time.Duration {
	return time.Duration(count * float64(time.Second))
}

func milliseconds(span time.Duration) float64 {
	return float64(span) / float64(time.Millisecond)
}
