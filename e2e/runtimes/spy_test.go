package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	spyName = "spy"
	spyLog  = "/run/spy.jsonl"
)

// A call is one call of the plugin by a runtime.
type call struct {
	Env    map[string]string // CNI_*
	Config string            // standard input
	Code   int               // exit code
	Took   time.Duration
}

// spy is the main function of a plugin that runs mld with all that it has been given itself, and writes that down.
func spy() (code int) {
	begin, c := time.Now(), call{Env: map[string]string{}}
	config, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "spy:", err)
		return 1
	}
	c.Config = string(config)
	for _, kv := range os.Environ() {
		if key, value, _ := strings.Cut(kv, "="); strings.HasPrefix(key, "CNI_") {
			c.Env[key] = value
		}
	}
	cmd := exec.Command(filepath.Join(binDir, "mld"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "spy:", err)
		return 1
	}
	c.Took, c.Code = time.Since(begin), cmd.ProcessState.ExitCode()
	line, err := json.Marshal(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "spy:", err)
		return 1
	}
	log, err := os.OpenFile(spyLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = log.Write(append(line, '\n')) // one write: calls may come at the same time
		err = errors.Join(err, log.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "spy:", err)
		return 1
	}
	return c.Code
}

// member returns what is under a path of keys in the configuration; nil if there is nothing.
func (c call) member(keys ...string) json.RawMessage {
	raw := json.RawMessage(c.Config)
	for _, key := range keys {
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) != nil {
			return nil
		}
		raw = members[key]
	}
	return raw
}

// A sent is what a runtime is expected to send: regular expressions for the whole of a value.
type sent struct {
	verb, ifname, netns, id, args string
	prevResult                    bool
}

// expect compares what the runtime has called since the last time with what it is known to send, and logs it as a
// table. Every call must have succeeded.
func (h *host) expect(want ...sent) []call {
	h.t.Helper()
	text, err := os.ReadFile(spyLog)
	if err := errors.Join(err, os.Remove(spyLog)); err != nil {
		h.t.Fatal(err)
	}
	var calls []call
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "verb\tcode\ttook\tprevResult\tCNI_IFNAME\tCNI_NETNS\tCNI_CONTAINERID\tCNI_ARGS\tCNI_PATH")
	for line := range strings.Lines(string(text)) {
		var c call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			h.t.Fatalf("%s: %v", line, err)
		}
		calls = append(calls, c)
		fmt.Fprintf(w, "%s\t%d\t%.1f ms\t%v\t%q\t%q\t%q\t%q\t%q\n", c.Env["CNI_COMMAND"], c.Code,
			float64(c.Took.Microseconds())/1000, c.member("prevResult") != nil, c.Env["CNI_IFNAME"], c.Env["CNI_NETNS"],
			c.Env["CNI_CONTAINERID"], c.Env["CNI_ARGS"], c.Env["CNI_PATH"])
	}
	_ = w.Flush() // into memory
	h.t.Logf("what the runtime has called:\n%s", &table)

	var said, wanted []string
	for _, c := range calls {
		said = append(said, c.Env["CNI_COMMAND"])
	}
	for _, s := range want {
		wanted = append(wanted, s.verb)
	}
	if !slices.Equal(said, wanted) {
		h.t.Errorf("the runtime has called %q, want %q", said, wanted)
		return calls
	}
	for i, s := range want {
		c := calls[i]
		for variable, pattern := range map[string]string{
			"CNI_IFNAME": s.ifname, "CNI_NETNS": s.netns, "CNI_CONTAINERID": s.id, "CNI_ARGS": s.args,
		} {
			if !regexp.MustCompile("^(?:" + pattern + ")$").MatchString(c.Env[variable]) {
				h.t.Errorf("call %d, %s: %s is %q, want %s", i, s.verb, variable, c.Env[variable], pattern)
			}
		}
		if got := c.member("prevResult") != nil; got != s.prevResult {
			h.t.Errorf("call %d, %s: prevResult: %v, want %v", i, s.verb, got, s.prevResult)
		}
		if c.Code != 0 {
			h.t.Errorf("call %d, %s: exit code %d", i, s.verb, c.Code)
		}
	}
	return calls
}

// discard forgets what has been called.
func (h *host) discard() {
	h.t.Helper()
	if err := os.Remove(spyLog); err != nil {
		h.t.Fatal(err)
	}
}
