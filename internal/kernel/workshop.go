package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/host"
	"github.com/mvmctl/mvm/internal/run"
)

// tool is a program or header that a build needs, and the package that has it.
type tool struct {
	name, pkg string
	present   func() bool
}

func programTool(name, pkg string) tool {
	return tool{name, pkg, func() bool { return host.Has(name) }}
}

// tools of the build (Documentation/process/changes.rst). objtool needs libelf.
var tools = []tool{
	programTool("make", "make"), programTool("gcc", "gcc"), programTool("ld", "binutils"), programTool("flex", "flex"), programTool("bison", "bison"),
	programTool("bc", "bc"), programTool("perl", "perl"), programTool("tar", "tar"), programTool("xz", "xz-utils"),
	{"libelf's headers", "libelf-dev", func() bool { _, err := os.Stat("/usr/include/libelf.h"); return err == nil }},
	{"libc's headers", "libc6-dev", func() bool { _, err := os.Stat("/usr/include/stdio.h"); return err == nil }},
}

// tools checks that all is there that the build needs, and returns which compiler
// it is: another one makes another kernel.
func (o *BuildOptions) tools(ctx context.Context) (compiler string, err error) {
	var names, packages []string
	for _, t := range tools {
		if !t.present() {
			names, packages = append(names, t.name), append(packages, t.pkg)
		}
	}
	if len(names) > 0 {
		return "", mvm.Errorf(mvm.ErrUnavailable, "building a kernel needs %s", strings.Join(names, ", ")).
			WithHint("apt-get install %s", strings.Join(packages, " "))
	}
	res, err := o.Runner.Run(ctx, run.Cmd{Name: "gcc", Args: []string{"--version"}})
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(res.Stdout), "\n")
	return strings.TrimSpace(first), nil
}

// workshop is a source tree with its objects, and the log of what is done there.
type workshop struct {
	*BuildOptions
	tree, objects string
	log           string
	file          *os.File
}

func (w *workshop) open() (err error) {
	w.file, err = os.Create(w.log)
	return err
}

func (w *workshop) close() { _ = w.file.Close() }

// compile builds the kernel's image, without modules.
func (w *workshop) compile(ctx context.Context) error {
	target := "vmlinux"
	if w.Arch == ARM64 {
		target = "Image"
	}
	w.Progress.Send("compile", "compiling")
	return w.run(ctx, fmt.Sprintf("-j%d", w.Jobs), target)
}

// run runs make in the source tree. Who builds, where and when is the same for all,
// so that one source and configuration give one kernel.
func (w *workshop) run(ctx context.Context, args ...string) error {
	out := &buildLog{file: w.file, progress: w.Progress}
	args = append([]string{"-C", w.tree, "O=" + w.objects, "LOCALVERSION=", "KBUILD_BUILD_USER=mvm", "KBUILD_BUILD_HOST=mvm",
		"KBUILD_BUILD_TIMESTAMP=1970-01-01"}, args...)
	_, err := w.Runner.Run(ctx, run.Cmd{Name: "make", Args: args, Env: buildEnv(os.Environ()), Stdout: out, Stderr: out})
	if errors.As(err, new(*run.ExitError)) {
		_ = w.file.Sync()
		cause, tail := out.tail()
		return &mvm.BuildError{Log: w.log, Cause: cause, Tail: tail}
	}
	return err
}

// buildEnv leaves out what would make the build another one.
func buildEnv(environ []string) []string {
	env := []string{"LC_ALL=C"}
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "ARCH", "SUBARCH", "CROSS_COMPILE", "CC", "LD", "LLVM", "LOCALVERSION", "MAKEFLAGS", "MAKELEVEL", "LC_ALL", "LANGUAGE", "O":
			continue
		}
		if !strings.HasPrefix(name, "KCONFIG_") && !strings.HasPrefix(name, "KBUILD_") {
			env = append(env, v)
		}
	}
	return env
}

// buildLog writes what a build says into a file, counts the files compiled, and keeps the
// last lines. Both streams of the build come here.
type buildLog struct {
	mu       sync.Mutex
	file     io.Writer
	progress mvm.ProgressFunc
	line     []byte
	last     []string // the newest at the end
	cause    string   // the first line that says what failed
	files    int64
}

// tailLines is how many lines of a log are shown.
const tailLines = 12

// Write implements io.Writer.
func (b *buildLog) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.line = append(b.line, p...)
	for {
		line, rest, ok := bytes.Cut(b.line, []byte("\n"))
		if !ok {
			break
		}
		b.take(string(line))
		b.line = rest
	}
	return b.file.Write(p)
}

func (b *buildLog) take(line string) {
	if f := strings.Fields(line); len(f) >= 2 && len(f[0]) <= 8 && strings.ToUpper(f[0]) == f[0] && line[0] == ' ' {
		b.files++
		if b.progress != nil && b.files%16 == 0 {
			b.progress(mvm.ProgressEvent{Phase: "compile", Message: filepath.Base(f[len(f)-1]), Current: b.files, Unit: "files"})
		}
		return
	}
	if strings.TrimSpace(line) == "" {
		return
	}
	if b.cause == "" && (strings.Contains(line, "error:") || strings.Contains(line, "undefined reference") || strings.Contains(line, "*** ")) {
		b.cause = line
	}
	if b.last = append(b.last, line); len(b.last) > tailLines {
		b.last = b.last[1:]
	}
}

// tail returns the first error, and the log's last lines with it.
func (b *buildLog) tail() (cause string, lines []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == "" || slices.Contains(b.last, b.cause) {
		return strings.TrimSpace(b.cause), b.last
	}
	return strings.TrimSpace(b.cause), append([]string{b.cause}, b.last...)
}
