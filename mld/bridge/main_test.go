package bridge_test

import (
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) { netnslab.Main(m) }
