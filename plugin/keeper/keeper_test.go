package keeper_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/keeper"
)

// patience is what nothing in these tests takes on any machine.
const patience = 30 * time.Second

// TestMain makes the test binary a worker where a keeper starts it.
func TestMain(m *testing.M) {
	if keeper.IsWorker() {
		os.Exit(worker(os.Args[1], os.Args[2]))
	}
	if len(os.Args) > 1 && os.Args[1] == "-version" { // a keeper tries it
		return
	}
	if signal.Ignored(unix.SIGHUP) { // by nohup, and workers end by it: what is caught here is the default there
		signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	}
	os.Exit(m.Run())
}

// worker does what a test says on a connection, line by line: "keep" opens a pipe and gives its writing end to the
// keeper, "drop ID", "settled", "accept", "handover" when it is told to, with "settled" as its last word or, after it has
// said "told", not before the next line, "exit CODE". It begins with its process and whether it resumes, and after a
// line says "ok". What is not to be served, a first argument "fail", is an end at once.
func worker(mode, control string) int {
	w, err := keeper.Connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		w.Wait()
		os.Exit(9)
	}()
	if mode == "fail" {
		return 1
	}
	if w.Ready != nil {
		_, _ = io.WriteString(w.Ready, "ready\n")
		_ = w.Ready.Close()
	}
	c, err := net.Dial("unix", control)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(c, os.Getpid(), w.Resume)
	kept := []int{}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		n, _ := strconv.Atoi(arg)
		answer := "ok"
		switch verb {
		case "keep":
			// A named pipe: who opens it for reading sees its end when nobody has it open any more.
			fd, err := unix.Open(arg, unix.O_RDWR|unix.O_CLOEXEC, 0)
			var id uint64
			if err == nil {
				id, err = w.Keep(fd)
			}
			kept = append(kept, fd)
			if answer = fmt.Sprint(id); err != nil {
				answer = err.Error()
			}
		case "drop":
			if err := w.Drop(uint64(n)); err != nil {
				answer = err.Error()
			}
			_ = unix.Close(kept[n-1])
		case "settled":
			if err := w.Settled(); err != nil {
				answer = err.Error()
			}
		case "accept":
			conn, err := w.Listener.Accept()
			if err == nil {
				_, err = fmt.Fprint(conn, os.Getpid())
				conn.Close()
			}
			if err != nil {
				answer = err.Error()
			}
		case "handover":
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, unix.SIGHUP)
			fmt.Fprintln(c, answer)
			<-signals
			signal.Ignore(unix.SIGTERM) // the first word counts
			switch arg {
			case "settled":
				_ = w.Settled()
			case "later":
				fmt.Fprintln(c, "told")
				lines.Scan()
			}
			return keeper.ExitHandover
		case "exit":
			return n
		}
		fmt.Fprintln(c, answer)
	}
	return 8
}

// A rig is a keeper in this process.
type rig struct {
	testing.TB
	dir     string
	control net.Listener // where workers come
	reload  chan os.Signal
	stop    context.CancelFunc
	ended   chan error
	log     *lockedBuffer
	events  chan string // settled, reloading
	conn    net.Conn    // to the worker that is
	lines   *bufio.Reader
	pid     int
	resume  bool
}

func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t testing.TB, mode string, ready *os.File) *rig {
	t.Helper()
	r := &rig{
		TB: t, dir: newDir(t), reload: make(chan os.Signal, 1), ended: make(chan error, 1),
		log: &lockedBuffer{failed: make(chan struct{}, 100)}, events: make(chan string, 100),
	}
	place, err := keeper.Take(r.socket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.control, err = net.Listen("unix", filepath.Join(r.dir, "control")); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() {
		err := keeper.Run(ctx, keeper.Config{
			Place: place, Path: program, Args: []string{"worker", mode, filepath.Join(r.dir, "control")}, Ready: ready,
			Reload: r.reload, Logger: slog.New(slog.NewTextHandler(r.log, nil)),
			Settled:   func() { r.events <- "settled" },
			Reloading: func() { r.events <- "reloading" },
		})
		r.ended <- errors.Join(err, place.Close())
	}()
	t.Cleanup(func() {
		r.stop()
		r.end()
		r.control.Close()
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

func (r *rig) socket() string { return filepath.Join(r.dir, "mldd.sock") }

// end waits for the end of the keeper.
func (r *rig) end() error {
	r.Helper()
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(patience):
		r.Fatal("the keeper does not end")
		return nil
	}
}

// next waits for a worker.
func (r *rig) next() {
	r.Helper()
	must(r, r.control.(*net.UnixListener).SetDeadline(time.Now().Add(patience)))
	conn, err := r.control.Accept()
	must(r, err)
	r.conn, r.lines = conn, bufio.NewReader(conn)
	must(r, conn.SetDeadline(time.Now().Add(patience)))
	line, err := r.lines.ReadString('\n')
	must(r, err)
	if _, err := fmt.Sscan(line, &r.pid, &r.resume); err != nil {
		r.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// say has the worker do something, and returns its answer.
func (r *rig) say(format string, args ...any) string {
	r.Helper()
	_, err := fmt.Fprintf(r.conn, format+"\n", args...)
	must(r, err)
	line, err := r.lines.ReadString('\n')
	must(r, err)
	return strings.TrimSpace(line)
}

func (r *rig) want(event string) {
	r.Helper()
	select {
	case got := <-r.events:
		if got != event {
			r.Fatalf("%s, want %s", got, event)
		}
	case <-time.After(patience):
		r.Fatalf("not %s", event)
	}
}

// A probe tells whether anybody has a named pipe open.
type probe struct {
	t    testing.TB
	path string
	file *os.File
}

func (r *rig) probe(name string) *probe {
	r.Helper()
	p := &probe{t: r, path: filepath.Join(r.dir, name)}
	must(r, unix.Mkfifo(p.path, 0o600))
	var err error
	p.file, err = os.OpenFile(p.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(r, err)
	r.Cleanup(func() { p.file.Close() })
	return p
}

// held wants that somebody has it open.
func (p *probe) held() {
	p.t.Helper()
	if n, err := unix.Read(int(p.fd()), make([]byte, 1)); !errors.Is(err, unix.EAGAIN) {
		p.t.Errorf("%s: %d, %v: nobody holds it", filepath.Base(p.path), n, err)
	}
}

// released waits until nobody has it open.
func (p *probe) released() {
	p.t.Helper()
	must(p.t, p.file.SetReadDeadline(time.Now().Add(patience)))
	if _, err := p.file.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		p.t.Errorf("%s: %v: somebody holds it", filepath.Base(p.path), err)
	}
}

func (p *probe) fd() (n uintptr) {
	conn, err := p.file.SyscallConn()
	must(p.t, err)
	must(p.t, conn.Control(func(fd uintptr) { n = fd }))
	return n
}

// TestKeep: what a worker gives outlives it, until the next one is settled, and no longer than until it drops it.
func TestKeep(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	if r.resume {
		t.Error("the first worker resumes")
	}
	r.say("settled")
	r.want("settled")
	a, b, c := r.probe("a"), r.probe("b"), r.probe("c")
	if got := []string{r.say("keep %s", a.path), r.say("keep %s", b.path)}; !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("kept as %q", got)
	}
	r.say("drop 2")
	b.released()

	must(t, unix.Kill(r.pid, unix.SIGKILL))
	before := r.pid
	r.next()
	if !r.resume || r.pid == before {
		t.Errorf("the second worker resumes: %v, process %d after %d", r.resume, r.pid, before)
	}
	a.held()
	r.say("keep %s", c.path) // the same number as a's
	a.held()
	r.say("settled")
	r.want("settled")
	a.released()
	c.held()

	r.reload <- unix.SIGHUP
	r.want("reloading")
	r.next()
	c.held()
	r.say("settled")
	r.want("settled")
	c.released()

	r.stop()
	if err := r.end(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := unix.Kill(r.pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the worker is left: %v", err)
	}
	if _, err := os.Stat(r.socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestNotSettled: of a worker that ends before it is settled, and of those before, everything is still held.
func TestNotSettled(t *testing.T) {
	r := start(t, "serve", nil)
	a, b := r.probe("a"), r.probe("b")
	for i, p := range []*probe{a, b} {
		r.next()
		if r.resume {
			t.Errorf("worker %d resumes what was never settled", i)
		}
		r.say("keep %s", p.path)
		must(t, unix.Kill(r.pid, unix.SIGKILL))
	}
	r.next()
	a.held()
	b.held()
	r.say("settled")
	a.released()
	b.released()
}

// TestNeverSettled: however many workers end before they are settled, the keeper does not hold more and more, and holds
// what the settled one had.
func TestNeverSettled(t *testing.T) {
	r := start(t, "serve", nil)
	var probes []*probe
	for i := range 10 {
		r.next()
		if i == 0 {
			r.say("settled")
		}
		probes = append(probes, r.probe(fmt.Sprint(i)))
		r.say("keep %s", probes[i].path)
		must(t, unix.Kill(r.pid, unix.SIGKILL))
		r.reload <- unix.SIGHUP // without a pause
	}
	r.next()
	probes[0].held()
	probes[1].released()
	probes[2].released()
	for _, p := range probes[3:] {
		p.held()
	}
	r.say("settled")
	for _, p := range probes {
		p.released()
	}
}

// TestBacklog: a client that comes while there is no worker is served by the next one.
func TestBacklog(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	r.say("settled")
	must(t, unix.Kill(r.pid, unix.SIGKILL))
	client, err := net.Dial("unix", r.socket())
	must(t, err)
	defer client.Close()
	must(t, client.SetDeadline(time.Now().Add(patience)))
	r.next()
	r.say("accept")
	if got, err := io.ReadAll(client); err != nil || string(got) != fmt.Sprint(r.pid) {
		t.Errorf("%q, %v, want the worker %d", got, err, r.pid)
	}
	r.say("settled") // so that it can be stopped
}

// TestDone: a worker that has nothing more to do is the last one.
func TestDone(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	p := r.probe("a")
	r.say("keep %s", p.path)
	fmt.Fprintln(r.conn, "exit 0")
	if err := r.end(); err != nil {
		t.Error(err)
	}
	p.released()
}

// TestCannotServe: when the first worker finds that it cannot serve, nothing gets better with a second one.
func TestCannotServe(t *testing.T) {
	r := start(t, "fail", nil)
	if err := r.end(); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("%v, want the worker's end", err)
	}
	r = start(t, "serve", nil) // while one that has served may fail
	r.next()
	r.say("settled")
	fmt.Fprintln(r.conn, "exit 1")
	r.next()
	r.say("settled") // so that it can be stopped
}

// TestReloadBeforeSettled: a worker that was asked to make room has not failed, also if it is the first, and not settled.
func TestReloadBeforeSettled(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	p := r.probe("a")
	r.say("keep %s", p.path)
	r.say("handover settled") // too late: it is not the one that was asked for
	r.reload <- unix.SIGHUP
	r.want("reloading")
	r.next()
	p.held()
	if n := len(r.events); n > 0 {
		t.Errorf("%s, and the next one is not", <-r.events)
	}
	r.say("settled")
	r.want("settled")
	p.released()
}

// TestStopInHandover: who is told to stop while one worker follows another has the next one leave what stands, when it
// has it. A worker has something standing before it is settled, too.
func TestStopInHandover(t *testing.T) {
	for _, settled := range []bool{true, false} {
		t.Run(fmt.Sprintf("settled %v", settled), func(t *testing.T) {
			r := start(t, "serve", nil)
			r.next()
			if settled {
				r.say("settled")
			}
			r.say("handover later")
			r.reload <- unix.SIGHUP
			if told, err := r.lines.ReadString('\n'); err != nil || told != "told\n" {
				t.Fatalf("%q, %v", told, err)
			}
			r.stop()
			fmt.Fprintln(r.conn, "now")
			r.next()
			p := r.probe("a")
			r.say("keep %s", p.path) // it is not stopped yet
			fmt.Fprintln(r.conn, "settled")
			if err := r.end(); err != nil {
				t.Error(err)
			}
			p.released()
		})
	}
}

// TestRunDirGone: no worker is started where nobody can find it.
func TestRunDirGone(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	r.say("settled")
	must(t, os.RemoveAll(r.dir))
	must(t, unix.Kill(r.pid, unix.SIGKILL))
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// TestReady: the first worker says how the start went; its starter hears the end of it although the daemon lives.
func TestReady(t *testing.T) {
	out, in, err := os.Pipe()
	must(t, err)
	defer out.Close()
	must(t, out.SetReadDeadline(time.Now().Add(patience)))
	r := start(t, "serve", in)
	if said, err := io.ReadAll(out); err != nil || string(said) != "ready\n" {
		t.Errorf("%q, %v", said, err)
	}
	r.next()
}

// TestPauses: a worker that fails again and again is started after longer and longer pauses, a reload at once.
func TestPauses(t *testing.T) {
	r := start(t, "serve", nil)
	r.next()
	r.say("settled")
	var last time.Time
	var pauses []time.Duration
	for range 5 {
		last = time.Now()
		must(t, unix.Kill(r.pid, unix.SIGKILL))
		r.next()
		pauses = append(pauses, time.Since(last))
	}
	for i, pause := range pauses {
		if least := 100 * time.Millisecond << i; pause < least {
			t.Errorf("pauses %v: number %d is below %v", pauses, i, least)
		}
	}
	for range pauses {
		<-r.log.failed
	}
	r.reload <- unix.SIGHUP // no failure, but the program is tried before
	r.next()
	if len(r.log.failed) > 0 { // it is told before the pause
		t.Error("a reload is a failure, with a pause")
	}
	r.want("settled")
	r.want("reloading")

	must(t, unix.Kill(r.pid, unix.SIGKILL))
	select {
	case <-r.log.failed:
	case <-time.After(patience):
		t.Fatal("no failure")
	}
	r.reload <- unix.SIGHUP // in the pause
	r.want("reloading")
	r.next()
	r.say("settled")
	r.want("settled")
}

// TestTake: one run directory has one keeper; the second neither harms the first nor leaves anything open.
func TestTake(t *testing.T) {
	dir := newDir(t)
	socket := filepath.Join(dir, "mldd.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}) // of a daemon that was killed
	must(t, err)
	stale.SetUnlinkOnClose(false)
	stale.Close()

	first, err := keeper.Take(socket, nil)
	must(t, err)
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	before := descriptors(t)
	if second, err := keeper.Take(socket, nil); !errors.Is(err, keeper.ErrRunning) || second != nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v, want ErrRunning and the directory", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	conn, err := net.Dial("unix", socket)
	must(t, err)
	conn.Close()
	if first.Gone() {
		t.Error("gone")
	}
	must(t, first.Close())
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}

	// A socket that was passed must be the right one, and stays.
	passed, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	passed.SetUnlinkOnClose(false)
	third, err := keeper.Take(socket, passed)
	must(t, err)
	must(t, third.Close())
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the socket that was passed: %v", err)
	}
	// One that has taken the socket's place, as a service manager does, keeps it.
	fourth, err := keeper.Take(socket, nil)
	must(t, err)
	must(t, os.Remove(socket))
	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	defer other.Close()
	if !fourth.Gone() {
		t.Error("another's socket is taken for its own")
	}
	must(t, fourth.Close())
	if _, err := os.Stat(socket); err != nil {
		t.Errorf("the socket of another: %v", err)
	}
	wrong, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "other.sock"), Net: "unix"})
	must(t, err)
	if _, err := keeper.Take(socket, wrong); err == nil || !strings.Contains(err.Error(), "must be "+socket) {
		t.Errorf("%v, want the right path", err)
	}
	must(t, os.RemoveAll(dir))
	if _, err := keeper.Take(socket, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that the directory is missing", err)
	}
}

// TestTakeFromEnding: a daemon that nobody finds any more is about to end, and is waited for.
func TestTakeFromEnding(t *testing.T) {
	dir := newDir(t)
	socket := filepath.Join(dir, "mldd.sock")
	lock := func() {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, "mldd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		time.AfterFunc(50*time.Millisecond, func() { f.Close() })
	}
	lock()
	place, err := keeper.Take(socket, nil)
	must(t, err)
	must(t, place.Close())

	passed, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	lock()
	place, err = keeper.Take(socket, passed)
	must(t, err)
	must(t, place.Close())
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	failed chan struct{} // a worker, as it says
	mu     sync.Mutex
	text   strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if strings.Contains(string(p), "worker ended") {
		b.failed <- struct{}{}
	}
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
