package netns

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"
)

// cookieOption is the socket option that tells the kernel's cookie (Linux 5.14); a test takes it away.
var cookieOption = unix.SO_NETNS_COOKIE

// An inode is that of a namespace. It tells the namespace only while somebody holds it: the next one that is made gets
// it at once.
type inode struct{ dev, ino uint64 }

// A number stands in for the cookie of a namespace as long as this process holds its inode, and is never used again.
type number struct {
	inode   inode
	cookie  uint64
	holders int
}

var numbers = struct {
	sync.Mutex
	held map[inode]*number
	last uint64
}{
	held: make(map[inode]*number),
	// Far from the kernel's cookies, which begin at 1, and from the numbers of another process, which somebody may
	// have noted.
	last: 1<<63 | rand.Uint64()>>2,
}

// takeNumber makes the cookie the number of the namespace's inode.
func (n *Namespace) takeNumber() error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &stat); err != nil {
		return fmt.Errorf("network namespace %s: %w", n.file.Name(), err)
	}
	key := inode{stat.Dev, stat.Ino}
	numbers.Lock()
	defer numbers.Unlock()
	if numbers.held[key] == nil {
		numbers.last++
		numbers.held[key] = &number{inode: key, cookie: numbers.last}
	}
	n.number = numbers.held[key]
	n.number.holders++
	n.cookie = n.number.cookie
	return nil
}

// giveBack closes the file and gives the number back. Nobody can take the number of an inode that has just been let go.
func (n *Namespace) giveBack() error {
	numbers.Lock()
	defer numbers.Unlock()
	if err := n.file.Close(); err != nil {
		return err
	}
	if n.number.holders--; n.number.holders == 0 {
		delete(numbers.held, n.number.inode)
	}
	return nil
}
