package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// TestFlights: one at a time for each key, side by side for different keys, and nobody waits longer than asked to.
func TestFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string]
		var mu sync.Mutex
		aloft, most := map[string]int{}, map[string]int{}
		total, mostTotal := 0, 0
		begin := time.Now()
		var work sync.WaitGroup
		for _, key := range []string{"a", "a", "a", "b", "b", "c"} {
			work.Go(func() {
				leave, err := f.enter(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				aloft[key]++
				total++
				most[key], mostTotal = max(most[key], aloft[key]), max(mostTotal, total)
				mu.Unlock()
				<-time.After(time.Second)
				mu.Lock()
				aloft[key]--
				total--
				mu.Unlock()
				leave()
			})
		}
		work.Wait()
		if diff := cmp.Diff(map[string]int{"a": 1, "b": 1, "c": 1}, most); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(begin); mostTotal != 3 || took != 3*time.Second {
			t.Errorf("%d at once, took %v; want 3 and 3s", mostTotal, took)
		}
		if len(f.busy) != 0 {
			t.Errorf("%v are left over", f.busy)
		}

		leave, err := f.enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if _, err := f.enter(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		leave()
		if leave, err = f.enter(ctx, "a"); err != nil {
			t.Errorf("a free key is refused: %v", err)
		} else {
			leave()
		}
	})
}

// TestIdleTimer: the time without attachments counts, and from the last one on.
func TestIdleTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = time.Minute
		d := &Daemon{cfg: Config{IdleExit: idle}, idle: time.NewTimer(idle), attachments: map[api.Attachment]*attachment{}}
		count := func(names ...string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			clear(d.attachments)
			for _, name := range names {
				d.attachments[api.Attachment{ContainerID: name}] = nil
			}
			d.countChanged()
		}
		want := func(want bool) {
			t.Helper()
			select {
			case <-d.idleC():
				if !want {
					t.Error("idle")
				}
			default:
				if want {
					t.Error("not idle")
				}
			}
		}
		<-time.After(idle / 2)
		count("a")
		<-time.After(time.Hour)
		want(false)
		count("a", "b")
		count("b")
		<-time.After(time.Hour)
		want(false)
		count()
		<-time.After(idle - 1)
		want(false)
		<-time.After(2)
		want(true)
		if (&Daemon{}).idleC() != nil {
			t.Error("a daemon without IdleExit is idle at times")
		}
	})
}

// TestSlowClients: whoever sends half a request, or nothing, is dropped in time.
func TestSlowClients(t *testing.T) {
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{RunDir: dir, Listener: l, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	d.patience = 50 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for _, begin := range []string{"", `{"v":1,"op":"sta`} {
		conn, err := net.Dial("unix", api.SocketPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, begin); err != nil {
			t.Error(err)
		}
		started := time.Now()
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after %q: %d octets, %v", begin, n, err)
		}
		if took := time.Since(started); took < d.patience/2 {
			t.Errorf("after %q: dropped within %v", begin, took)
		}
		conn.Close()
	}
}

// TestServeEndsBetweenRequests: a connection that is about to wait for its next request when the daemon is told to
// stop does not wait for it.
func TestServeEndsBetweenRequests(t *testing.T) {
	fds, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer fds[0].Close()
	defer fds[1].Close()
	d := &Daemon{log: slog.New(slog.DiscardHandler), patience: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // and the deadline was moved before serve sets its own
	ended := make(chan error, 1)
	go func() { ended <- d.serve(ctx, fds[0]) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(requestTimeout):
		t.Error("waits for a request")
	}
}

// TestContradiction names every setting that attachments of an interface have to agree on.
func TestContradiction(t *testing.T) {
	stands := voiceOf(api.DefaultSettings())
	for want, change := range map[string]func(*voice){
		"mldVersion: 2 here, auto there":                                  func(v *voice) { v.mldVersion = "2" },
		"profile: kame here, rfc there":                                   func(v *voice) { v.profile = api.ProfileKAME },
		"kernelReports: mute here, auto there":                            func(v *voice) { v.kernelReports = api.KernelReportsMute },
		"robustness: 3 here, 2 there":                                     func(v *voice) { v.robustness = 3 },
		"unsolicitedReportInterval: 1s here, the default there":           func(v *voice) { v.interval = time.Second },
		"alwaysDone: true here, false there":                              func(v *voice) { v.alwaysDone = true },
		"robustness: 1 here, 2 there; alwaysDone: true here, false there": func(v *voice) { v.robustness, v.alwaysDone = 1, true },
	} {
		v := stands
		change(&v)
		if got := v.contradiction(stands); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTables: every value of the settings has its meaning.
func TestTables(t *testing.T) {
	for _, v := range []string{api.MLDVersionAuto, api.MLDVersion1, api.MLDVersion2} {
		if _, ok := versions[v]; !ok {
			t.Errorf("mldVersion %q has no meaning", v)
		}
	}
	for _, m := range []api.Mode{api.Exclude, api.Include} {
		if got, ok := modes[m]; !ok || !strings.EqualFold(got.String(), m.String()) {
			t.Errorf("mode %v means %v", m, got)
		}
	}
	for _, p := range []string{api.ProfileRFC, api.ProfileKAME} {
		if _, ok := profiles[p]; !ok {
			t.Errorf("profile %q has no meaning", p)
		}
	}
	for _, k := range []string{api.KernelReportsAuto, api.KernelReportsMute, api.KernelReportsKeep} {
		if got, ok := kernelReports[k]; !ok || got.String() != k {
			t.Errorf("kernelReports %q means %v", k, got)
		}
	}
}

// socketpair makes two connected sockets.
func socketpair() ([2]*net.UnixConn, error) {
	var pair [2]*net.UnixConn
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pair, err
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			return pair, err
		}
		pair[i] = conn.(*net.UnixConn)
	}
	return pair, nil
}
