package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// moduleInitCompressed makes the kernel decompress the file itself
// (MODULE_INIT_COMPRESSED_FILE, Linux 5.17).
const moduleInitCompressed = 4

// loadModules loads the files that list names, in its order. What fails is
// reported and does not stop the rest: another kernel may have it built in.
func loadModules(dir, list string, report func(error)) {
	data, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		report(err)
		return
	}
	for _, name := range strings.Fields(string(data)) {
		if err := loadModule(path.Join(dir, path.Base(name))); err != nil {
			report(fmt.Errorf("load module %s: %w", name, err))
		}
	}
}

func loadModule(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	flags := 0
	if path.Ext(file) != ".ko" {
		flags = moduleInitCompressed
	}
	if err := unix.FinitModule(fd, "", flags); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}
