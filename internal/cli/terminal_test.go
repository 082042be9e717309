package cli

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/mvmctl/mvm/api"
	"github.com/mvmctl/mvm/internal/cli/render"
	"golang.org/x/term"
)

// openPTY makes a pseudo terminal (pty(7)); what is typed is written to keyboard.
func openPTY(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	var unlock, n int32
	ioctl(t, keyboard, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(t, keyboard, syscall.TIOCGPTN, unsafe.Pointer(&n))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	resize(t, tty, 30, 100)
	return keyboard, tty
}

func ioctl(t *testing.T, f *os.File, request uintptr, arg unsafe.Pointer) {
	t.Helper()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		t.Skipf("pseudo terminals do not work here: %v", errno)
	}
}

func resize(t *testing.T, tty *os.File, rows, cols uint16) {
	t.Helper()
	ioctl(t, tty, syscall.TIOCSWINSZ, unsafe.Pointer(&[4]uint16{rows, cols}))
}

func ptyApp(tty *os.File) *app {
	none := func(string) string { return "" }
	return &app{stdin: tty, getenv: none, out: render.New(tty, tty, none)}
}

func TestAttachTerminal(t *testing.T) {
	_, tty := openPTY(t)
	a := ptyApp(tty)
	if a.out.Width != 100 || !a.out.OutColour || !a.canAsk() {
		t.Fatalf("the terminal was not seen: width %d", a.out.Width)
	}
	before := stateOf(t, tty)
	var s api.StreamIO
	end, err := a.attachTerminal(&s)
	if err != nil {
		t.Fatal(err)
	}
	if s.Terminal == nil || *s.Terminal != (api.TerminalSize{Rows: 30, Cols: 100}) {
		t.Errorf("size %v", s.Terminal)
	}
	if reflect.DeepEqual(before, stateOf(t, tty)) {
		t.Error("the terminal is not raw")
	}
	resize(t, tty, 40, 120)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if got := <-s.Resize; got != (api.TerminalSize{Rows: 40, Cols: 120}) {
		t.Errorf("changed size %v", got)
	}
	end()
	if !reflect.DeepEqual(before, stateOf(t, tty)) {
		t.Error("the terminal was not given back")
	}
}

// The second Ctrl-C does not wait for the session: Main restores by itself.
func TestRestoreBeforeTheSessionEnds(t *testing.T) {
	_, tty := openPTY(t)
	a := ptyApp(tty)
	before := stateOf(t, tty)
	end, err := a.attachTerminal(&api.StreamIO{})
	if err != nil {
		t.Fatal(err)
	}
	a.restoreTerminal()
	if !reflect.DeepEqual(before, stateOf(t, tty)) {
		t.Error("the terminal was not given back")
	}
	end()
}

func TestAttachWithoutTerminal(t *testing.T) {
	a, _, _ := testApp()
	var s api.StreamIO
	end, err := a.attachTerminal(&s)
	if err != nil || s.Terminal != nil || s.Resize != nil {
		t.Errorf("%v, %+v", err, s)
	}
	end()
}

func TestConfirmOnTerminal(t *testing.T) {
	keyboard, tty := openPTY(t)
	a := ptyApp(tty)
	if _, err := keyboard.WriteString("y\n"); err != nil {
		t.Fatal(err)
	}
	if err := a.confirm(t.Context(), "Go on?", false); err != nil {
		t.Error(err)
	}
	shown := make([]byte, 200)
	n, err := keyboard.Read(shown)
	if err != nil || !strings.Contains(string(shown[:n]), "y") {
		t.Errorf("%v, %q", err, shown[:n])
	}
}

func stateOf(t *testing.T, tty *os.File) *term.State {
	t.Helper()
	s, err := term.GetState(int(tty.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
