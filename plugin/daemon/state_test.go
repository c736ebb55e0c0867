package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

var equalAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// sample is what a store of these tests keeps; the version tells one from another.
func sample(version int) record {
	s := api.DefaultSettings()
	s.Groups = []api.Group{
		{Addr: netip.MustParseAddr("ff05::1"), Deliver: true},
		{Addr: netip.MustParseAddr("ff3e::8000:1"), Mode: api.Include, Sources: []netip.Addr{netip.MustParseAddr("fd00::1")}},
	}
	return record{
		Attachment: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "et@h0"},
		Cookie:     4711, Index: 7, NetnsPath: "/run/netns/c1", Host: true, Settings: s,
		Added: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Degraded: fmt.Sprint(version),
		Plug: &plug{Bridge: "br0", Port: "veth1"},
	}
}

func newStore(t testing.TB, dir string) *store {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t testing.TB, s *store) []*record {
	t.Helper()
	list, err := s.load(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func files(t testing.TB, s *store) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(s.dir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestStore: what is put is found again, by another store too, and what is removed is not.
func TestStore(t *testing.T) {
	s := newStore(t, t.TempDir())
	for version := range 2 {
		if err := s.put(sample(version)); err != nil {
			t.Fatal(err)
		}
		want := sample(version)
		want.Schema, want.BootID = schema, s.boot
		if diff := cmp.Diff([]*record{&want}, load(t, newStore(t, s.runDir)), equalAddr); diff != "" {
			t.Error(diff)
		}
	}
	info, err := os.Stat(api.StatePath(s.runDir, sample(0).Attachment))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v, want mode 0600", info, err)
	}
	if keys, err := api.Remembered(s.runDir, "lab"); err != nil || len(keys) != 1 || keys[0] != sample(0).Attachment {
		t.Errorf("keys %v, %v", keys, err)
	}
	if keys, err := api.Remembered(s.runDir, "other"); err != nil || len(keys) != 0 {
		t.Errorf("keys of another network %v, %v", keys, err)
	}
	for i := range 2 {
		if has := s.has(sample(0).Attachment); has != (i == 0) {
			t.Errorf("has a file: %v, after %d removals", has, i)
		}
		if err := s.remove(sample(0).Attachment); err != nil {
			t.Error(err)
		}
	}
	if list := files(t, s); len(list) != 0 {
		t.Errorf("left: %q", list)
	}
}

// powerCut is what a disk panics with when it stops.
type powerCut struct{}

// A cutDisk stops at one of its steps, in the middle of it. What a directory has been told and not yet synced is lost
// then, which is the worst that a file system may do. Or it only fails at that step.
type cutDisk struct {
	disk
	left int  // steps to go
	fail bool // with an error
	undo []func()
}

var errDisk = errors.New("the disk has failed")

func (d *cutDisk) step(half, whole func() error) error {
	if d.left--; d.left >= 0 {
		return whole()
	}
	if half != nil {
		if err := half(); err != nil {
			panic(err)
		}
	}
	if d.fail {
		d.left = 1 << 30 // what cleans up may work
		return errDisk
	}
	for _, undo := range d.undo {
		undo()
	}
	panic(powerCut{})
}

func (d *cutDisk) write(path string, data []byte) error {
	return d.step(func() error { return d.disk.write(path, data[:len(data)/2]) }, func() error { return d.disk.write(path, data) })
}

func (d *cutDisk) rename(from, to string) error {
	before, err := os.ReadFile(to)
	existed := err == nil
	return d.step(nil, func() error {
		d.undo = append(d.undo, func() {
			_ = d.disk.rename(to, from)
			if existed {
				_ = d.disk.write(to, before)
			}
		})
		return d.disk.rename(from, to)
	})
}

func (d *cutDisk) remove(path string) error {
	before, err := os.ReadFile(path)
	existed := err == nil
	return d.step(nil, func() error {
		if existed {
			d.undo = append(d.undo, func() { _ = d.disk.write(path, before) })
		}
		return d.disk.remove(path)
	})
}

func (d *cutDisk) syncDir(path string) error {
	return d.step(nil, func() error { d.undo = nil; return d.disk.syncDir(path) })
}

// TestStoreCutAnywhere: whenever the machine stops, the next daemon finds what stood before or what was to stand, whole,
// and nothing else; and once the store has returned, it is what was to stand.
func TestStoreCutAnywhere(t *testing.T) {
	for name, op := range map[string]struct {
		before, after []string // versions, "" for none
		do            func(*store) error
	}{
		"new":     {[]string{}, []string{"1"}, func(s *store) error { return s.put(sample(1)) }},
		"replace": {[]string{"0"}, []string{"1"}, func(s *store) error { return s.put(sample(1)) }},
		"remove":  {[]string{"0"}, []string{}, func(s *store) error { return s.remove(sample(0).Attachment) }},
	} {
		for _, fail := range []bool{false, true} {
			steps := 0
			for returned := false; !returned; steps++ {
				s := newStore(t, t.TempDir())
				for range op.before {
					if err := s.put(sample(0)); err != nil {
						t.Fatal(err)
					}
				}
				s.disk = &cutDisk{disk: osDisk{}, left: steps, fail: fail}
				err := run(func() error { return op.do(s) })
				returned = err == nil
				var got []string
				for _, r := range load(t, newStore(t, s.runDir)) {
					got = append(got, r.Degraded)
				}
				if now := fmt.Sprint(got); now != fmt.Sprint(op.after) && (returned || now != fmt.Sprint(op.before)) {
					t.Errorf("%s, step %d, %v: found %v, want %v or, before the end, %v", name, steps, err, got, op.after, op.before)
				}
				if list := files(t, s); len(list) != len(got) {
					t.Errorf("%s, step %d: left: %q", name, steps, list)
				}
				if fail && !returned && !errors.Is(err, errDisk) {
					t.Errorf("%s, step %d: %v, want what the disk has said", name, steps, err)
				}
			}
			if want := map[string]int{"new": 4, "replace": 4, "remove": 3}[name]; steps != want {
				t.Errorf("%s: %d steps, want %d", name, steps, want)
			}
		}
	}
}

// run turns a power cut into an error.
func run(do func() error) (err error) {
	defer func() {
		if cut := recover(); cut != nil {
			err = errors.New("power cut")
			if _, ok := cut.(powerCut); !ok {
				panic(cut)
			}
		}
	}()
	return do()
}

// TestStoreIgnores: what is not entirely a state file of this boot counts for nothing, and only what is surely of no
// use any more is removed.
func TestStoreIgnores(t *testing.T) {
	s := newStore(t, t.TempDir())
	valid := func(change func(map[string]any)) string {
		r := sample(0)
		r.Schema, r.BootID = schema, s.boot
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var keys map[string]any
		if err := json.Unmarshal(data, &keys); err != nil {
			t.Fatal(err)
		}
		change(keys)
		if data, err = json.Marshal(keys); err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	name := filepath.Base(api.StatePath(s.runDir, sample(0).Attachment))
	for what, c := range map[string]struct {
		name, text string
		loaded     bool
		stays      bool
	}{
		"as it should be":       {name, valid(func(map[string]any) {}), true, true},
		"of an older mldd":      {name, valid(func(k map[string]any) { delete(k, "plug") }), true, true},
		"another boot":          {name, valid(func(k map[string]any) { k["bootID"] = "another" }), false, false},
		"half written":          {name + tempSuffix, valid(func(map[string]any) {})[:100], false, false},
		"cut off":               {name, valid(func(map[string]any) {})[:100], false, true},
		"empty":                 {name, "", false, true},
		"zeros":                 {name, strings.Repeat("\x00", 500), false, true},
		"another schema":        {name, valid(func(k map[string]any) { k["schema"] = schema + 1 }), false, true},
		"no schema":             {name, valid(func(k map[string]any) { delete(k, "schema") }), false, true},
		"an unknown key":        {name, valid(func(k map[string]any) { k["more"] = 1 }), false, true},
		"two values":            {name, valid(func(map[string]any) {}) + "{}", false, true},
		"no cookie":             {name, valid(func(k map[string]any) { k["cookie"] = 0 }), false, true},
		"no interface":          {name, valid(func(k map[string]any) { k["ifindex"] = -1 }), false, true},
		"no settings":           {name, valid(func(k map[string]any) { delete(k, "settings") }), false, true},
		"settings against rule": {name, valid(func(k map[string]any) { k["settings"].(map[string]any)["robustness"] = 8 }), false, true},
		"a path that is none":   {name, valid(func(k map[string]any) { k["netns"] = "a\x00b" }), false, true},
		"another attachment":    {name, valid(func(k map[string]any) { k["containerID"] = "c2" }), false, true},
		"a name out of place":   {name, valid(func(k map[string]any) { k["network"] = "../lab" }), false, true},
		"another file":          {"notes.txt", "mind the gap", false, true},
	} {
		path := filepath.Join(s.dir(), c.name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if loaded := len(load(t, s)) == 1; loaded != c.loaded {
			t.Errorf("%s: loaded: %v, want %v", what, loaded, c.loaded)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) == c.stays {
			t.Errorf("%s: %v, stays: want %v", what, err, c.stays)
		}
		_ = os.Remove(path)
	}
	if err := os.Mkdir(filepath.Join(s.dir(), name), 0o700); err != nil {
		t.Fatal(err)
	}
	if len(load(t, s)) != 0 {
		t.Error("a directory is loaded")
	}
}

// FuzzParseRecord: no octets harm, and what is accepted comes out the same when it is written again.
func FuzzParseRecord(f *testing.F) {
	r := sample(0)
	r.Schema, r.BootID = schema, "boot"
	data, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(`{"schema":1}`))
	f.Add([]byte(`{"schema":1,"settings":null,"bootID":"b","cookie":1,"ifindex":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		if err := r.Attachment.Validate(); err != nil {
			t.Fatalf("accepted, and has no file: %v", err)
		}
		written, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRecord(written)
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if diff := cmp.Diff(r, again, equalAddr); diff != "" {
			t.Error(diff)
		}
	})
}

// BenchmarkPut is what an ADD pays for its file: on the file system of TMPDIR, and on the one that /run is of.
func BenchmarkPut(b *testing.B) {
	for _, dir := range []string{os.TempDir(), "/dev/shm"} {
		b.Run(dir, func(b *testing.B) {
			dir, err := os.MkdirTemp(dir, "store")
			if err != nil {
				b.Skip(err)
			}
			defer os.RemoveAll(dir)
			s := newStore(b, dir)
			for b.Loop() {
				if err := s.put(sample(0)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
