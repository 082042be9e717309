package api

import (
	"os"
	"strconv"
	"strings"
)

// cmdline returns the command line of a process, nothing when it is gone.
func cmdline(pid int) []string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}
