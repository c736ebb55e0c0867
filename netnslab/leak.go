package netnslab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// settle bounds how long the end of what the tests started is waited for. Closing a packet socket alone may
// take 14 ms.
const settle = 2 * time.Second

// A census is what this process holds at one moment.
type census struct {
	home        string              // the network namespace of the process, as its link reads
	descriptors map[string]struct{} // "7 socket:[1234]"
	goroutines  map[string]struct{} // "42"
	children    map[string]struct{} // process numbers
}

// takeCensus counts what is there before the tests, after it has woken what is made once and stays: the
// runtime's poller and the descriptor with which mld/netns finds home.
func takeCensus() (*census, error) {
	if unavailable == nil {
		ns, err := netns.Current()
		if err != nil {
			return nil, err
		}
		if err := ns.Close(); err != nil {
			return nil, err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = r.Close(), w.Close()

	c := &census{}
	if c.home, err = os.Readlink("/proc/self/ns/net"); err != nil {
		return nil, err
	}
	c.descriptors = setOf(descriptors())
	c.children = setOf(children())
	c.goroutines = map[string]struct{}{}
	for id := range goroutines() {
		c.goroutines[id] = struct{}{}
	}
	return c, nil
}

// leaks describes, one text each, what is there now and was not at the census. It waits for what is about to
// go, no longer than settle.
func (c *census) leaks() []string {
	deadline := time.Now().Add(settle)
	for pause := time.Millisecond; ; pause *= 2 {
		found := c.look()
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
		runtime.Gosched()
		<-time.After(pause)
	}
}

func (c *census) look() []string {
	var found []string
	for _, d := range descriptors() {
		if _, known := c.descriptors[d]; !known {
			found = append(found, describeDescriptor(d))
		}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != c.home {
			found = append(found, fmt.Sprintf("thread %s in the foreign namespace %s", strings.Split(task, "/")[4], ns))
		}
	}
	for _, pid := range children() {
		if _, known := c.children[pid]; !known {
			cmdline, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			found = append(found, fmt.Sprintf("child process %s: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
		}
	}
	for id, stack := range goroutines() {
		if _, known := c.goroutines[id]; !known {
			found = append(found, stack)
		}
	}
	slices.Sort(found)
	return found
}

func setOf(names []string) map[string]struct{} {
	set := make(map[string]struct{}, len(names))
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}

// descriptors lists the open descriptors as "number target", without the runtime's own.
func descriptors() []string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var all []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue // the descriptor that read the directory, or the runtime's poller
		}
		all = append(all, e.Name()+" "+target)
	}
	return all
}

func describeDescriptor(d string) string {
	number, target, _ := strings.Cut(d, " ")
	text := fmt.Sprintf("descriptor %s: %s", number, target)
	switch {
	case strings.HasPrefix(target, "net:["):
		text += ", a network namespace"
	case strings.HasPrefix(target, "socket:["):
		if fd, err := strconv.Atoi(number); err == nil {
			text += ", " + describeSocket(fd)
		}
	}
	return text
}

func describeSocket(fd int) string {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return "a socket"
	}
	protocol, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	names := map[int]string{
		unix.AF_PACKET: "AF_PACKET", unix.AF_NETLINK: "AF_NETLINK", unix.AF_INET6: "AF_INET6",
		unix.AF_INET: "AF_INET", unix.AF_UNIX: "AF_UNIX",
	}
	name, ok := names[domain]
	if !ok {
		name = strconv.Itoa(domain)
	}
	return fmt.Sprintf("a socket of family %s, protocol %d", name, protocol)
}

// children lists the process numbers of this process' children.
func children() []string {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	var all []string
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// goroutines maps the number of each goroutine to its stack, without the calling one and those that the
// standard library and mld/netns keep for good.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := map[string]string{}
	for i, stack := range strings.Split(string(buf), "\n\n") {
		header, _, _ := strings.Cut(stack, "\n")
		fields := strings.Fields(header)
		if i == 0 || len(fields) < 2 || strings.Contains(stack, "os/signal.signal_recv") ||
			strings.Contains(stack, "/mld/netns.serve(") {
			continue
		}
		all[fields[1]] = stack
	}
	return all
}
