package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

type nodeSettings struct {
	index     int
	voters    []string
	directory string
	store     string
	tuned     bool
	logCache  int
	times     string
}

// countingFSM counts what was applied: the benchmark compares the counts of all nodes with what was acknowledged.
type countingFSM struct {
	applied atomic.Uint64
}

func (f *countingFSM) Apply(*raft.Log) any { return f.applied.Add(1) }

func (f *countingFSM) Snapshot() (raft.FSMSnapshot, error) {
	return countSnapshot(fmt.Sprint(f.applied.Load())), nil
}

func (f *countingFSM) Restore(source io.ReadCloser) error {
	defer source.Close()
	var count uint64
	if _, err := fmt.Fscan(source, &count); err != nil {
		return err
	}
	f.applied.Store(count)
	return nil
}

type countSnapshot string

func (s countSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := io.WriteString(sink, string(s)); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s countSnapshot) Release() {}

// store is what both stores are: the log, and the term and vote beside it.
type store interface {
	raft.LogStore
	raft.StableStore
}

func openStore(settings nodeSettings) (store, error) {
	switch settings.store {
	case "bolt":
		return raftboltdb.New(raftboltdb.Options{Path: filepath.Join(settings.directory, "raft.db")})
	case "wal":
		directory := filepath.Join(settings.directory, "wal")
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return nil, err
		}
		return wal.Open(directory)
	default:
		return nil, fmt.Errorf("there is no log store %q; known: bolt, wal", settings.store)
	}
}

// openNode founds the cluster: every voter starts from the same configuration, so any of them may be elected.
func openNode(settings nodeSettings, state raft.FSM) (*raft.Raft, error) {
	if settings.index < 0 || settings.index >= len(settings.voters) {
		return nil, fmt.Errorf("there is no voter %d among %d", settings.index, len(settings.voters))
	}
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(settings.voters[settings.index])
	config.Logger = hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, Output: os.Stderr})
	if settings.tuned {
		config.MaxAppendEntries = 512
		config.BatchApplyCh = true
		config.CommitTimeout = 5 * time.Millisecond
	}

	if settings.times != "" {
		var heartbeat, election, lease int
		if _, err := fmt.Sscanf(settings.times, "%d,%d,%d", &heartbeat, &election, &lease); err != nil {
			return nil, fmt.Errorf("-times %q is not three numbers: %w", settings.times, err)
		}
		config.HeartbeatTimeout = time.Duration(heartbeat) * time.Millisecond
		config.ElectionTimeout = time.Duration(election) * time.Millisecond
		config.LeaderLeaseTimeout = time.Duration(lease) * time.Millisecond
	}

	durable, err := openStore(settings)
	if err != nil {
		return nil, fmt.Errorf("the log store does not open: %w", err)
	}
	var log raft.LogStore = durable
	if settings.logCache > 0 {
		if log, err = raft.NewLogCache(settings.logCache, durable); err != nil {
			return nil, err
		}
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(settings.directory, 1, config.Logger)
	if err != nil {
		return nil, err
	}
	address := settings.voters[settings.index]
	transport, err := raft.NewTCPTransportWithLogger(address, nil, 3, 10*time.Second, config.Logger)
	if err != nil {
		return nil, err
	}

	var founding raft.Configuration
	for _, voter := range settings.voters {
		server := raft.Server{ID: raft.ServerID(voter), Address: raft.ServerAddress(voter)}
		founding.Servers = append(founding.Servers, server)
	}
	err = raft.BootstrapCluster(config, log, durable, snapshots, transport, founding)
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) { // A node that is started again is founded already.
		return nil, fmt.Errorf("the cluster is not founded: %w", err)
	}
	return raft.NewRaft(config, state, log, durable, snapshots, transport)
}
