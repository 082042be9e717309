// Command mvm makes and runs microVMs. See package internal/cli for the commands
// and package api for the same in Go.
package main

import (
	"os"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli"
)

func main() {
	if api.ChildMain() { // started by mvm itself, as supervisor of a VM
		return
	}
	os.Exit(cli.Main(os.Args[1:]))
}
