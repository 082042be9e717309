// Command mvm makes and runs microVMs. See package internal/cli for the commands
// and package api for the same in Go.
package main

import (
	"os"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli"
)

func main() {
	if status, done := api.ChildMain(); done { // started by mvm itself
		os.Exit(status)
	}
	os.Exit(cli.Main(os.Args[1:]))
}
