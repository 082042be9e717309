package qemu

import (
	"os"
	"strings"
	"sync"
	"time"
)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// hostTSC returns the frequency of the host's time stamp counter in kHz, 0 where
// it is not constant. TCG passes the counter on to the guest, whose kernel has
// the more trouble to measure it the busier the host is.
var hostTSC = sync.OnceValue(func() uint64 {
	data, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	if err != nil || !strings.Contains(" "+string(data), " tsc") {
		if info, err := os.ReadFile("/proc/cpuinfo"); err != nil || !strings.Contains(string(info), " constant_tsc ") {
			return 0
		}
	}
	return measureTSC()
})

// measureTSC compares the counter with the clock over 3 ms. Reading the clock
// takes less than 100 ns, so that the result is right to about 0.01 %; the kernel
// asks for 1 %, and refines it later. A pair of readings that something came in
// between is seen by its length, and the shortest of some is taken.
func measureTSC() uint64 {
	t0, c0 := reading()
	time.Sleep(3 * time.Millisecond)
	t1, c1 := reading()
	ns := t1.Sub(t0).Nanoseconds()
	if ns <= 0 || c1 <= c0 {
		return 0
	}
	return uint64(float64(c1-c0) / float64(ns) * 1e6)
}

func reading() (at time.Time, counter uint64) {
	best := time.Duration(1<<63 - 1)
	for range 8 {
		before := time.Now()
		c := rdtsc()
		if took := time.Since(before); took < best {
			best, at, counter = took, before.Add(took/2), c
		}
	}
	return at, counter
}
