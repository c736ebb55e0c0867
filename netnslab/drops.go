package netnslab

import (
	"os"
	"strconv"
	"strings"
)

// softnetStat is the kernel's file of what its processors have received; a test has its own.
var softnetStat = "/proc/self/net/softnet_stat"

// droppedFrames is how many frames this machine has dropped so far because more were on their way to one processor than
// net.core.netdev_max_backlog. Every veth's frames pass there, and all namespaces share it, so that a flood in one makes
// others lose theirs without a word. The number begins again at 2^32.
func droppedFrames() (n uint32) {
	const dropped = 1 // the second column, in hexadecimal; a line for each processor
	data, _ := os.ReadFile(softnetStat)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > dropped {
			v, _ := strconv.ParseUint(f[dropped], 16, 32)
			n += uint32(v)
		}
	}
	return n
}
