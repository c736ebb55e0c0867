package main

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxLog is how many bytes the log of a self-started daemon may have before it becomes the former one. There is one
// former log, so that both take twice as much, and what a line or a panic has beyond.
const maxLog = 1 << 20

// formerSuffix is what the name of the former log ends with.
const formerSuffix = ".1"

// A selfLog is the path of the log of a self-started daemon, which is its standard error: what the runtime says at a
// panic is there, too. Keeper and worker write to it, and whoever finds it full puts the next one in its place, for the
// other one to follow. Should both find that at the same moment, the former log may be lost.
type selfLog string

// Write writes to standard error, which it makes the log of that path first, if it was.
func (l selfLog) Write(line []byte) (int, error) {
	_ = l.renew() // or the line goes where the last one went
	return os.Stderr.Write(line)
}

func (l selfLog) renew() error {
	own, err := os.Stderr.Stat()
	if err != nil || !own.Mode().IsRegular() { // of somebody who has started it by hand
		return err
	}
	there, err := os.Lstat(string(l))
	removed := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !removed:
		return err
	case !removed && !os.SameFile(own, there): // it was full, and the other one has found that
	case own.Size() < maxLog: // also if it was removed, for the run directory may be about to go
		return nil
	case !removed:
		if err := os.Rename(string(l), string(l)+formerSuffix); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(string(l), os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), unix.Stderr, 0)
}
