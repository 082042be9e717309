package supervisor

import (
	"bufio"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long after the VMM's start, or after the last use of the channel to
// its guest, a supervisor is taken to be idle: it then shrinks.
const settled = 5 * time.Second

// regrown is after what time a supervisor shrinks again. Go collects garbage when that
// was not done for two minutes (runtime, forcegcperiod), and by that reads much of the
// program again; to shrink collects as well, and being earlier is in its place.
const regrown = time.Minute

// shrinkAgain shrinks now and then until the context ends.
func shrinkAgain(ctx context.Context) {
	tick := time.NewTicker(regrown)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			shrink()
		case <-ctx.Done():
			return
		}
	}
}

// shrink gives back the memory that was needed for a while only. Most of
// it are pages of the program's file, which come back from the page cache where
// they are used again (madvise(2), MADV_DONTNEED). Mappings that were written to
// are left alone: there it would undo the writing.
func shrink() {
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	var start, end uint64
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.Fields(s.Text())
		switch {
		case len(field) >= 6 && !strings.HasSuffix(field[0], ":"): // "start-end perms offset device inode path"
			start, end = 0, 0
			if from, to, ok := strings.Cut(field[0], "-"); ok && strings.HasPrefix(field[1], "r-") && strings.HasPrefix(field[5], "/") {
				start, _ = strconv.ParseUint(from, 16, 64)
				end, _ = strconv.ParseUint(to, 16, 64)
			}
		case len(field) == 3 && field[0] == "Anonymous:" && field[1] == "0" && end > start:
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}
