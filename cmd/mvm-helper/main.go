// Command mvm-helper makes the networks and taps of ordinary users, as root. It is
// installed by 'mvm host init' and run by mvm, through sudo; see package helper.
package main

import (
	"os"

	"github.com/mvmctl/mvm/internal/helper"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/network/linux"
)

func main() { os.Exit(helper.Main(linux.New(), host.PortTaken)) }
