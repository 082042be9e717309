package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// Preload has the kernel read a file ahead into its memory (posix_fadvise(2)). It
// returns at once, and where that does not work nobody is worse off.
func Preload(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED) // advice
}
