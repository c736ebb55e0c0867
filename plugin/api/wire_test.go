package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// ceiling is what no exchange in these tests takes on any machine.
const ceiling = 20 * time.Second

func background(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), ceiling)
	t.Cleanup(cancel)
	return ctx
}

// listen returns a run directory and what listens in it.
func listen(t testing.TB) (string, *net.UnixListener) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return dir, l
}

// pair returns a client and the server's end of its connection.
func pair(t testing.TB) (*Client, *net.UnixConn) {
	t.Helper()
	dir, l := listen(t)
	c, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(ceiling))
	return c, conn
}

func tempFile(t testing.TB, name string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func addRequest(t testing.TB) *Request {
	return &Request{
		Op:         OpAdd,
		Attachment: Attachment{"lab", "c1", "eth0"},
		Settings:   mustParse(t, `{"groups": ["ff05::4321", {"group": "ff02::8", "deliver": false}], "robustness": 3}`),
		NetnsPath:  "/run/netns/c1",
		Netns:      tempFile(t, "netns"),
		HostNetns:  tempFile(t, "host"),
	}
}

func mustParse(t testing.TB, text string) *Settings {
	s, err := parse(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openFiles counts the descriptors of this process.
func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func sameFile(t *testing.T, what string, a, b *os.File) {
	t.Helper()
	ai, err := a.Stat()
	if err != nil {
		t.Fatal(what, err)
	}
	bi, err := b.Stat()
	if err != nil {
		t.Fatal(what, err)
	}
	if !os.SameFile(ai, bi) {
		t.Errorf("%s: %v is not %v", what, ai.Name(), bi.Name())
	}
}

// TestExchange carries several requests over one connection, with every field, with descriptors and without.
func TestExchange(t *testing.T) {
	client, conn := pair(t)
	host := addRequest(t)
	host.Netns = nil
	host.Op = OpDel
	answers := []*Answer{
		{},
		{Degraded: "bridge cni0 has no entry"},
		{Error: types.NewError(CodeNotReady, "not ready", "wait longer")},
		{Status: &Status{Version: "v1", Binary: "/usr/bin/mldd", PID: 7, Cgroup: "/", Netns: "net:[1]",
			SelfStarted: true, Attachments: 3}},
	}
	for i, r := range []*Request{
		addRequest(t),
		{Op: OpDel, Attachment: Attachment{"lab", "c1", "eth0"}},
		host,
		{Op: OpStatus},
		{Op: OpGC, Attachment: Attachment{Network: "lab"}, Valid: []Attachment{{ContainerID: "c1", IfName: "eth0"}}},
		{Op: OpList, HostNetns: tempFile(t, "host")},
		{Op: OpGroups},
		{Op: OpWatch},
	} {
		got := make(chan *Request, 1)
		go func() {
			r, err := ReadRequest(conn)
			if err != nil {
				t.Error(err)
				conn.Close()
			} else if err := WriteAnswer(conn, answers[i%len(answers)]); err != nil {
				t.Error(err)
			}
			got <- r
		}()
		answer, err := client.Call(background(t), r)
		if err != nil {
			t.Fatal(err)
		}
		want := *answers[i%len(answers)]
		want.V = Version
		if diff := cmp.Diff(&want, answer); diff != "" {
			t.Error(diff)
		}
		g := <-got
		wantRequest := *r
		wantRequest.V = Version
		ignore := cmpopts.IgnoreFields(Request{}, "Netns", "HostNetns")
		if diff := cmp.Diff(&wantRequest, g, byAddr, ignore, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		for _, f := range []struct{ sent, got *os.File }{{r.Netns, g.Netns}, {r.HostNetns, g.HostNetns}} {
			if (f.sent == nil) != (f.got == nil) {
				t.Fatalf("%s: sent descriptor %v, got %v", r.Op, f.sent, f.got)
			}
			if f.sent != nil {
				sameFile(t, r.Op, f.sent, f.got)
				flags, err := unix.FcntlInt(f.got.Fd(), unix.F_GETFD, 0)
				if err != nil || flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("descriptor flags %#x, %v: want close-on-exec", flags, err)
				}
			}
		}
		g.Close()
	}
}

// TestAnswerThenClose: a server that answers and closes at once is no error, however early it is.
func TestAnswerThenClose(t *testing.T) {
	dir, l := listen(t)
	served := make(chan struct{})
	defer func() { l.Close(); <-served }()
	go func() {
		defer close(served)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if r, err := ReadRequest(conn); err == nil {
				r.Close()
			}
			WriteAnswer(conn, &Answer{})
			conn.Close()
		}
	}()
	r := addRequest(t)
	for i := range 300 {
		client, err := Dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Call(background(t), r)
		client.Close()
		if err != nil {
			t.Fatalf("exchange %d: %v", i, err)
		}
	}
}

// TestLargeRequest is larger than the socket's buffer, so that the message with the descriptors is cut.
func TestLargeRequest(t *testing.T) {
	client, conn := pair(t)
	r := addRequest(t)
	r.Settings.Groups = nil
	for i := range 20000 {
		addr := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 2: 0xff, 5: 0xff, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
		r.Settings.Groups = append(r.Settings.Groups, Group{Addr: addr, Deliver: true})
	}
	got := make(chan *Request, 1)
	go func() {
		r, err := ReadRequest(conn)
		if err != nil {
			t.Error(err)
		}
		got <- r
		WriteAnswer(conn, &Answer{})
	}()
	if _, err := client.Call(background(t), r); err != nil {
		t.Fatal(err)
	}
	g := <-got
	if !g.Settings.Equal(*r.Settings) {
		t.Error("the groups differ")
	}
	sameFile(t, "netns", r.Netns, g.Netns)
	g.Close()

	for range 60000 {
		r.Settings.Groups = append(r.Settings.Groups, r.Settings.Groups[0])
	}
	if _, err := client.Call(background(t), r); err == nil || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("a line over the limit: error %v", err)
	}
}

// A daemon that may open no more files loses what is sent to it: that is not the client's fault, who may try again.
func TestReadRequestAtTheLimit(t *testing.T) {
	client, conn := pair(t)
	if _, _, err := client.conn.WriteMsgUnix([]byte("{}\n"), unix.UnixRights(int(tempFile(t, "sent").Fd())), nil); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = ReadRequest(conn)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var fault *types.Error
	if !errors.As(err, &fault) || fault.Code != types.ErrTryAgainLater || !strings.Contains(fault.Msg, "RLIMIT_NOFILE") {
		t.Errorf("%v, want an error of code %d that names the limit", err, types.ErrTryAgainLater)
	}
}

// TestReadRequestRefuses sends what no client should. The server must answer with an error that names the fault,
// and keep no descriptor.
func TestReadRequestRefuses(t *testing.T) {
	add, err := json.Marshal(wireRequest{Request: &Request{V: Version, Op: OpAdd, Attachment: Attachment{"lab", "c1", "eth0"},
		Settings: DefaultSettings()}, Descriptors: descriptorNames})
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) string {
		if !strings.Contains(string(add), old) {
			t.Fatalf("%s has no %s", add, old)
		}
		return strings.Replace(string(add), old, new, 1) + "\n"
	}
	for _, tc := range []struct {
		name  string
		line  string
		files int
		want  string
	}{
		{"too many descriptors", string(add) + "\n", 3, "more than 2 descriptors"},
		{"far too many descriptors", string(add) + "\n", 100, "more than 2 descriptors"},
		{"no descriptors", string(add) + "\n", 0, "names 2 descriptors and brings 0"},
		{"one descriptor", string(add) + "\n", 1, "names 2 descriptors and brings 1"},
		{"descriptors without names", replace(`,"descriptors":["netns","hostNetns"]`, ``), 2, "names 0 descriptors and brings 2"},
		{"unknown descriptor", replace(`"hostNetns"]`, `"home"]`), 2, `"home"`},
		{"descriptor twice", replace(`"hostNetns"]`, `"netns"]`), 2, `"netns"`},
		{"only the container's", replace(`["netns","hostNetns"]`, `["netns"]`), 1, "needs the descriptors"},
		{"garbage", "\x00\xff hello\n", 2, "invalid character"},
		{"empty line", "\n", 1, "unexpected end of JSON"},
		{"null", "null\n", 1, "version 1"},
		{"two values", string(add) + "{}\n", 2, "after top-level value"},
		{"two lines", string(add) + "\n{}\n", 2, "wait for the answer"},
		{"half a line", string(add)[:20], 2, "ended after 20 bytes"},
		{"long line", strings.Repeat(" ", MaxLine) + "\n", 2, "longer than 1048576"},
		{"no version", replace(`"v":1,`, ``), 2, "this side speaks version 1"},
		{"newer version", replace(`"v":1,`, `"v":2,"novel":true,`), 2, "client speaks protocol version 2 and this side version 1"},
		{"unknown key", replace(`"op"`, `"novel":1,"op"`), 2, `"novel" (protocol version 1 on both sides)`},
		{"unknown key in settings", replace(`"robustness"`, `"novel":1,"robustness"`), 2, `"novel"`},
		{"unknown op", replace(`"add"`, `"addd"`), 2, `"addd"`},
		{"bad attachment", replace(`"c1"`, `"../c1"`), 2, `"../c1"`},
		{"bad settings", replace(`"robustness":2`, `"robustness":9`), 2, "robustness: 9"},
		{"bad group", replace(`"groups":null`, `"groups":["fd00::1"]`), 2, `groups[0]: "fd00::1"`},
		{"GC without a network", `{"v":1,"op":"gc","valid":[]}` + "\n", 0, `network name ""`},
		{"GC of many networks", `{"v":1,"op":"gc","network":"lab","valid":[{"network":"lab","containerID":"c1","ifname":"eth0"}]}` + "\n",
			0, "lab/c1/eth0: must not name a network"},
		{"GC with a bad attachment", `{"v":1,"op":"gc","network":"lab","valid":[{"containerID":"c1","ifname":"a/b"}]}` + "\n", 0, `"a/b"`},
		{"no settings", replace(`"settings":{`, `"settings":null,"x":{`), 2, `"x"`},
		{"long path", replace(`"op"`, `"netns":"`+strings.Repeat("x", 5000)+`","op"`), 2, "5000 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, conn := pair(t)
			f := tempFile(t, "sent")
			before := openFiles(t)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				fds := make([]int, tc.files)
				for i := range fds {
					fds[i] = int(f.Fd())
				}
				n, _, err := client.conn.WriteMsgUnix([]byte(tc.line), unix.UnixRights(fds...), nil)
				if err == nil && n < len(tc.line) {
					client.conn.Write([]byte(tc.line[n:]))
				}
				client.conn.CloseWrite()
			}()
			r, err := ReadRequest(conn)
			after := openFiles(t)
			conn.Close() // a writer may still be busy with the rest of a long line
			<-sent
			if err == nil {
				t.Fatalf("accepted as %+v", r)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			var e *types.Error
			if broken := errors.Is(err, io.ErrUnexpectedEOF); errors.As(err, &e) == broken {
				t.Errorf("error %#v: only what can be answered is a types.Error", err)
			}
			if after != before {
				t.Errorf("%d descriptors before and %d after", before, after)
			}
		})
	}
}

// TestDescriptorsInPieces: descriptors that arrive one by one count together.
func TestDescriptorsInPieces(t *testing.T) {
	client, conn := pair(t)
	f := tempFile(t, "sent")
	before := openFiles(t)
	for _, piece := range []string{`{"v":`, `1,"op"`, `:"status"}`} {
		if _, _, err := client.conn.WriteMsgUnix([]byte(piece), unix.UnixRights(int(f.Fd())), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadRequest(conn); err == nil || !strings.Contains(err.Error(), "more than 2 descriptors") {
		t.Errorf("error %v", err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
}

// TestSilence: a side that says nothing is waited for until the deadline and no longer, and descriptors that came
// before it fell silent are closed.
func TestSilence(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		client, _ := pair(t)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := client.Call(ctx, addRequest(t))
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > ceiling/2 {
			t.Errorf("after %v: %v", took, err)
		}
		if want := "no worker of mldd answers: see its log, by journalctl -u mldd or in "; !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	})
	t.Run("server that does not read", func(t *testing.T) {
		client, _ := pair(t)
		r := addRequest(t)
		r.Settings.Groups = make([]Group, 40000)
		for i := range r.Settings.Groups {
			r.Settings.Groups[i] = Group{Addr: netip.MustParseAddr("ff05::4321"), Deliver: true}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		if _, err := client.Call(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		client, conn := pair(t)
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			if r, err := ReadRequest(conn); err == nil {
				r.Close()
			}
			cancel()
		}()
		if _, err := client.Call(ctx, addRequest(t)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("client", func(t *testing.T) {
		client, conn := pair(t)
		f := tempFile(t, "sent")
		before := openFiles(t)
		if _, _, err := client.conn.WriteMsgUnix([]byte(`{"v":`), unix.UnixRights(int(f.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		if _, err := ReadRequest(conn); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%d descriptors before and %d after", before, after)
		}
	})
	t.Run("client that leaves", func(t *testing.T) {
		client, conn := pair(t)
		client.Close()
		if _, err := ReadRequest(conn); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

// TestCallRefuses: what no daemon should answer.
func TestCallRefuses(t *testing.T) {
	for _, tc := range []struct{ name, answer, want string }{
		{"garbage", "hello\n", "invalid character"},
		{"nothing", "", "went away without an answer"},
		{"half a line", `{"v":1`, "went away without an answer"},
		{"newer version", `{"v":2,"novel":1}` + "\n", "daemon speaks protocol version 2 and this side version 1"},
		{"unknown key", `{"v":1,"novel":1}` + "\n", `"novel" (protocol version 1 on both sides)`},
		{"long line", strings.Repeat(" ", MaxLine+1) + "\n", "longer than 1048576"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, conn := pair(t)
			go func() {
				ReadRequest(conn)
				conn.Write([]byte(tc.answer))
				conn.CloseWrite()
			}()
			_, err := client.Call(background(t), &Request{Op: OpStatus})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v does not say %q", err, tc.want)
			}
			if gone := strings.Contains(tc.want, "went away"); NotRunning(err) != gone {
				t.Errorf("NotRunning(%v) = %v", err, !gone)
			}
		})
	}
}

func TestDialWithoutDaemon(t *testing.T) {
	dir, l := listen(t)
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(dir); !NotRunning(err) || !strings.Contains(err.Error(), SocketPath(dir)) {
		t.Errorf("a socket that nobody listens on: %v", err)
	}
	os.Remove(SocketPath(dir))
	if _, err := Dial(dir); !NotRunning(err) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Dial(filepath.Join(dir, "none")); !NotRunning(err) {
		t.Errorf("no run directory: %v", err)
	}
	if err := os.Chmod(dir, 0o722); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(dir); NotRunning(err) || !errors.Is(err, ErrRunDir) {
		t.Errorf("a run directory that anybody may write to: %v", err)
	}
}

func TestCheckRunDir(t *testing.T) {
	dir, _ := listen(t)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := errors.Join(os.Mkdir(shared, 0o700), os.Chmod(shared, 0o770)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ dir, want string }{
		{dir, ""},
		{dir + "/", ""},
		{link, "is not a directory"},
		{file, "is not a directory"},
		{shared, "a directory of its own"},
		{filepath.Join(dir, "none"), "create it with mode 0700"},
		{"run/mld", "absolute"},
		{"/" + strings.Repeat("x", 100), "socket path of 111 bytes"},
	} {
		err := CheckRunDir(tc.dir)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: error %v, want %q", tc.dir, err, tc.want)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(shared, 1, -1); err != nil {
			t.Fatal(err)
		}
		if err := CheckRunDir(shared); err == nil || !strings.Contains(err.Error(), "belongs to user 1") {
			t.Errorf("another's directory: %v", err)
		}
	}
}

// TestRunDirOfRoot: who has forgotten to be root is told so.
func TestRunDirOfRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		again := exec.Command("/proc/self/exe", "-test.run=^TestRunDirOfRoot$")
		again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := again.CombinedOutput(); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			netnslab.Skip(t, fmt.Sprintf("no other user: %v", err))
		} else if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	for _, dir := range []string{"/run", "/run/mld-test-none"} {
		if err := CheckRunDir(dir); !errors.Is(err, ErrRunDir) || !strings.Contains(err.Error(), asRoot) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// TestRunDirIsCreatedInRun needs the right to write to /run.
func TestRunDirIsCreatedInRun(t *testing.T) {
	dir := fmt.Sprintf("/run/mld-api-test-%d", os.Getpid())
	if unix.Access("/run", unix.W_OK) != nil {
		t.Skip("/run is not writable")
	}
	t.Cleanup(func() { os.Remove(dir) })
	for range 2 {
		if err := CheckRunDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v: want mode 0700", info.Mode(), err)
	}
}

func TestAttachmentValidate(t *testing.T) {
	for _, tc := range []struct {
		a    Attachment
		want string
	}{
		{Attachment{"lab", "c1", "eth0"}, ""},
		{Attachment{"my-net_1.2", "0f.A-_", "veth@1"}, ""},
		{Attachment{strings.Repeat("n", 112), strings.Repeat("c", 113), strings.Repeat("i", 15)}, ""},
		{Attachment{strings.Repeat("n", 113), strings.Repeat("c", 113), strings.Repeat("i", 15)}, "240 bytes"},
		{Attachment{"", "c1", "eth0"}, "network name"},
		{Attachment{"lab", "", "eth0"}, "container ID"},
		{Attachment{"lab", "c1", ""}, "interface name"},
		{Attachment{"a/b", "c1", "eth0"}, `"a/b"`},
		{Attachment{"a@b", "c1", "eth0"}, `"a@b"`},
		{Attachment{"lab", "..", "eth0"}, `".."`},
		{Attachment{"lab", "c1\n", "eth0"}, `"c1\n"`},
		{Attachment{"lab", "c1", ".."}, `".."`},
		{Attachment{"lab", "c1", "e/0"}, `"e/0"`},
		{Attachment{"lab", "c1", "e:0"}, `"e:0"`},
		{Attachment{"lab", "c1", "e 0"}, `"e 0"`},
		{Attachment{"lab", "c1", "e\x010"}, `"e\x010"`},
		{Attachment{"lab", "c1", "e\xff"}, `"e\xff"`},
		{Attachment{"lab", "c1", strings.Repeat("i", 16)}, "15 bytes"},
	} {
		err := tc.a.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%q: error %v, want %q", tc.a, err, tc.want)
		}
		if name := filepath.Base(StatePath("/run/mld", tc.a)); tc.want == "" && len(name) > 255 {
			t.Errorf("%q: file name of %d bytes", tc.a, len(name))
		}
	}
}

// TestRemembered: what StatePath has named is found again, and nothing else.
func TestRemembered(t *testing.T) {
	runDir := t.TempDir()
	if got, err := Remembered(runDir, "lab"); err != nil || len(got) != 0 {
		t.Errorf("without a directory: %v, %v", got, err)
	}
	want := []Attachment{{"lab", "0f.A-_", "veth@1"}, {"lab", "c1", "@"}, {"lab", "c1", "e.json"}}
	paths := []string{}
	for _, a := range append(want, Attachment{"lab2", "c1", "eth0"}, Attachment{"la", "c1", "eth0"}) {
		paths = append(paths, StatePath(runDir, a))
	}
	dir := filepath.Dir(paths[0])
	for _, name := range []string{"lab", "lab@c1@eth0", "lab@c1.json", "lab@c1@.json", "lab@@eth0.json", "lab@c1@eth0.json.tmp", "lab@c1@e 0.json"} {
		paths = append(paths, filepath.Join(dir, name))
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Remembered(runDir, "lab")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// FuzzDecodeRequest: no line panics, and what is accepted is valid and survives the wire.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"op":"status"}`), 0)
	f.Add([]byte(`{"v":1,"op":"del","network":"lab","containerID":"c1","ifname":"eth0","netns":"/run/netns/c1"}`), 0)
	f.Add([]byte(`{"v":1,"op":"add","network":"lab","containerID":"c1","ifname":"eth0","settings":{"groups":["ff05::1",
		{"group":"ff05::2","deliver":false},"fd00::1@ff3e::8000:1"],"mldVersion":"1","profile":"rfc","kernelReports":"auto","robustness":2,
		"unsolicitedReportInterval":"10s","alwaysDone":false,"ready":{"wait":"auto","timeout":"1s"}},
		"descriptors":["netns","hostNetns"]}`), 2)
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	defer null.Close()
	f.Fuzz(func(t *testing.T, line []byte, n int) {
		files := []*os.File{null, null, null}[:n&3]
		r, err := decodeRequest(line, files)
		if err != nil {
			return
		}
		w := wireRequest{Request: r}
		if r.Netns != nil {
			w.Descriptors = append(w.Descriptors, "netns")
		}
		if r.HostNetns != nil {
			w.Descriptors = append(w.Descriptors, "hostNetns")
		}
		text, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decodeRequest(text, files)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		ignore := cmpopts.IgnoreFields(Request{}, "Netns", "HostNetns")
		if diff := cmp.Diff(r, back, byAddr, cmpopts.EquateEmpty(), ignore); diff != "" {
			t.Fatal(diff)
		}
	})
}

// BenchmarkExchange is an ADD over a socket with both descriptors, in one process.
func BenchmarkExchange(b *testing.B) {
	client, conn := pair(b)
	go func() {
		for {
			conn.SetDeadline(time.Now().Add(ceiling))
			r, err := ReadRequest(conn)
			if err != nil {
				return
			}
			r.Close()
			WriteAnswer(conn, &Answer{})
		}
	}()
	r := addRequest(b)
	ctx := background(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Call(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
}
