//go:build twin

package twin

import (
	"flag"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) {
	// A lab spends its time waiting, so that many can run at a time; -parallel still has the last word.
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	netnslab.Main(m)
}
