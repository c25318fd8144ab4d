// Command hashicorp is one node of a hashicorp/raft cluster for the benchmark of bench/raft.
//
// It keeps its log in a real store with real fsyncs, talks TCP on loopback, and obeys the lines of JSON on its standard
// input that bench/raft/README.md describes. It ends when its input ends, so no node outlives the benchmark.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// request is one line from the benchmark. The fields after Do belong to "load".
type request struct {
	Do            string  `json:"do"`
	InFlight      int     `json:"in_flight"`
	Seconds       float64 `json:"seconds"`
	WarmUpSeconds float64 `json:"warm_up_seconds"`
	PayloadBytes  int     `json:"payload_bytes"`
}

// reporter writes one line of JSON for each event; a node has several goroutines with something to say.
type reporter struct {
	mutex sync.Mutex
}

func (r *reporter) event(name string, fields map[string]any) {
	line := map[string]any{"event": name}
	for key, value := range fields {
		line[key] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		fmt.Fprintln(os.Stderr, "hashicorp:", err)
		os.Exit(1)
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	fmt.Println(string(text))
}

func (r *reporter) failed(err error) {
	r.event("failed", map[string]any{"problem": err.Error()})
}

func main() {
	var settings nodeSettings
	var voters string
	flag.IntVar(&settings.index, "index", 0, "which of the voters this node is")
	flag.StringVar(&voters, "voters", "", "addresses of all voters, separated by commas")
	flag.StringVar(&settings.directory, "directory", "", "where the log is kept")
	flag.StringVar(&settings.store, "store", "", "log store: bolt or wal")
	flag.BoolVar(&settings.tuned, "tuned", false, "MaxAppendEntries 512, BatchApplyCh, CommitTimeout 5 ms")
	flag.StringVar(&settings.times, "times", "", "heartbeat, election and lease timeout in ms: 200,200,100; default: the library's")
	flag.IntVar(&settings.logCache, "log-cache", 0, "entries kept in memory in front of the store; 0: no cache")
	flag.Parse()
	settings.voters = strings.Split(voters, ",")

	report := &reporter{}
	if err := serve(settings, report); err != nil {
		report.failed(err)
		os.Exit(1)
	}
}

// serve runs the node until the standard input ends.
func serve(settings nodeSettings, report *reporter) error {
	state := &countingFSM{}
	node, err := openNode(settings, state)
	if err != nil {
		return err
	}
	go announceLeadership(node, report, settings.times != "")

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return fmt.Errorf("a line of the input is not a request: %w", err)
		}
		switch asked.Do {
		case "load":
			if err := drive(node, asked, report); err != nil {
				report.failed(err)
			}
		case "applied":
			report.event("applied", map[string]any{"count": state.applied.Load()})
		default:
			return fmt.Errorf("there is no request %q", asked.Do)
		}
	}
	return node.Shutdown().Error()
}

// announceLeadership tells the benchmark who leads; that of bench/failover also hears of each loss, and expects it.
func announceLeadership(node *raft.Raft, report *reporter, forFailover bool) {
	for leads := range node.LeaderCh() {
		switch {
		case leads && forFailover:
			report.event("lease", nil)
		case leads:
			report.event("leader", nil)
		case forFailover:
			report.event("lost", nil)
		}
	}
}
