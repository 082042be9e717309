// Command mvm makes and runs microVMs. See package internal/cli for the commands
// and package api for the same in Go.
package main

import (
	"os"
	"runtime/debug"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli"
)

// gcPercent lets the heap grow further between collections: a command ends before
// most of them would pay.
const gcPercent = 400

func main() {
	if status, done := api.ChildMain(); done { // started by mvm itself
		os.Exit(status)
	}
	debug.SetGCPercent(gcPercent)
	os.Exit(cli.Main(os.Args[1:]))
}
