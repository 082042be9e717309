// Package fakevmm is a Firecracker without KVM, for tests: the test binary,
// started again under the name "firecracker", that reads the same command line
// and configuration file, offers the same API and vsock sockets, has the guest's
// console on stdin and stdout and ends as the real one does. Its guest is a few
// goroutines (see guest.go). It knows nothing of the driver that it is tested
// with, and it refuses what Firecracker's OpenAPI description does not allow
// wherever that description was found.
package fakevmm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Version is what the fake says it is.
const Version = "1.16.1"

// programName is the name under which the test binary becomes the fake.
const programName = "firecracker"

// Main runs the fake if this process was started as one and ends the process;
// otherwise it returns. It has to be the first call of TestMain.
func Main() {
	switch filepath.Base(os.Args[0]) {
	case jailerName:
		os.Exit(runJailer(os.Args[1:], os.Stdout, os.Stderr))
	case programName:
		if os.Getpid() == 1 {
			// The kernel drops SIGTERM for the first process of a pid namespace
			// that has no handler, and Firecracker has none. The Go runtime has.
			signal.Ignore(syscall.SIGTERM)
		}
		os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
}

// Install makes a directory with a program "firecracker" that is this test
// binary, and returns the program's path. The test's package has to call Main.
func Install(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, programName)
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	if spec := SpecPath(); spec != "" { // the fake finds it beside itself, whatever its environment
		if err := os.Symlink(spec, filepath.Join(dir, specName)); err != nil {
			t.Fatal(err)
		}
	}
	return program
}

// Exit codes of Firecracker (FcExitCode in its source).
const (
	exitOK      = 0
	exitError   = 1
	exitArgs    = 153
	exitAborted = 134 // SIGABRT
)

// flags are Firecracker's options; true takes a value.
var flags = map[string]bool{
	"api-sock": true, "boot-timer": false, "config-file": true, "describe-snapshot": true, "enable-pci": false,
	"help": false, "http-api-max-payload-size": true, "id": true, "level": true, "log-path": true, "metadata": true,
	"metrics-path": true, "mmds-size-limit": true, "module": true, "no-api": false, "no-seccomp": false,
	"parent-cpu-time-us": true, "seccomp-filter": true, "show-level": false, "show-log-origin": false,
	"snapshot-version": false, "start-time-cpu-us": true, "start-time-us": true, "version": false,
}

func parse(args []string) (map[string]string, error) {
	opts := map[string]string{"api-sock": "/run/firecracker.socket", "id": "anonymous-instance", "level": "Info"}
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "--")
		value, known := flags[name]
		switch {
		case !isFlag || !known:
			return nil, fmt.Errorf("UnexpectedArgument(%q)", strings.TrimPrefix(args[i], "--"))
		case value && (i+1 == len(args) || strings.HasPrefix(args[i+1], "--")):
			return nil, fmt.Errorf("MissingValue(%q)", name)
		case value:
			i++
			opts[name] = args[i]
		default:
			opts[name] = "true"
		}
	}
	return opts, nil
}

// run is the process: it returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	opts, err := parse(args)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "Error: ParseArguments(%v)\n", err)
		return exitArgs
	}
	if opts["version"] != "" {
		_, _ = fmt.Fprintf(stdout, "Firecracker v%s\n\n", Version)
	}
	log, err := openLog(opts, stdout)
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "Error: LoggerInitialization(%v)\n", err)
		return exitError
	}
	if opts["version"] != "" {
		log.info("Firecracker exiting successfully. exit_code=0")
		return exitOK
	}
	log.info("Running Firecracker v" + Version)
	vm := &machine{
		id: opts["id"], pci: opts["enable-pci"] != "", log: log, state: "Not started", ended: make(chan int, 1),
		home: filepath.Dir(os.Args[0]),
	}
	vm.guest = newGuest(stdin, stdout)
	vm.guest.host = vm
	if existing(filepath.Join(vm.home, specName)) != "" {
		if vm.spec, err = LoadSpec(filepath.Join(vm.home, specName)); err != nil {
			_, _ = fmt.Fprintf(stderr, "Error: fakevmm cannot read the OpenAPI description: %v\n", err)
			return exitError
		}
	}
	if err := vm.start(opts); err != nil {
		if vm.waiting.Load() > 0 { // its API thread panics for want of an answer, before anything is said
			return exitAborted
		}
		log.error(err.Error())
		_, _ = fmt.Fprintf(stderr, "Error: RunWithApi(%v)\n", err)
		log.error("Firecracker exiting with error. exit_code=1")
		return exitError
	}
	code := <-vm.ended
	answered, cancel := context.WithTimeout(context.Background(), time.Second)
	_ = vm.server.Shutdown(answered) // the API's thread ends with its answers sent
	cancel()
	if code == exitError { // a snapshot that could not be loaded
		_, _ = fmt.Fprintln(stderr, "Error: RunWithApi(BuildMicroVmError(Restore))")
		return code
	}
	vm.mu.Lock()
	_ = vm.writeMetrics()
	vm.mu.Unlock()
	log.info(fmt.Sprintf("Firecracker exiting successfully. exit_code=%d", code))
	return code
}
