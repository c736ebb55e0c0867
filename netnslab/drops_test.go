package netnslab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// A test that fails says how many frames the machine has dropped meanwhile, and nothing if it has dropped none.
func TestDroppedFrames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "softnet_stat")
	defer netnslab.WithSoftnetStat(path)()
	write := func(columns ...string) {
		t.Helper()
		lines := make([]string, len(columns))
		for i, c := range columns {
			lines[i] = fmt.Sprintf("0242a6f9 %s 00000063 00000000 00000000\n", c)
		}
		if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		before, after []string
		says          string
	}{
		{[]string{"0018fe0b", "00000001"}, []string{"0018fe0b", "00000001"}, ""},
		{[]string{"0018fe0b", "00000001"}, []string{"0018fe1b", "00000002"}, "has dropped 17 frames"},
		{[]string{"ffffffff", "00000000"}, []string{"00000001", "00000000"}, "has dropped 2 frames"},
	} {
		p := run(func(p *program) {
			write(c.before...)
			netnslab.New(p)
			write(c.after...)
			p.Fatalf("failed")
		})
		if said := p.log.String(); c.says == "" && strings.Contains(said, "dropped") || !strings.Contains(said, c.says) {
			t.Errorf("%v, then %v: says %q, want %q", c.before, c.after, said, c.says)
		}
	}
	if _, err := os.Stat("/proc/self/net/softnet_stat"); err != nil {
		t.Error(err)
	}
}
