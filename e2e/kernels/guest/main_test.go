//go:build kernels

package guest

import (
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

func TestNothing(t *testing.T) {
	lab := netnslab.New(t)
	lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1}).Connect(lab.Node("pod"), "eth0")
}
