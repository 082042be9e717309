package proc

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strings"
	"time"
)

// saysReady is what a process says when it serves.
const saysReady = "ready\n"

// endLimit is how long a process that did not get ready may take to end.
const endLimit = 5 * time.Second

// StartReady is StartDetached for a process that calls Ready or NotReady on the file
// that follows the extra ones. It returns when the process has called Ready; on error
// no process is left, and the text is what it said.
func StartReady(ctx context.Context, s Spec) (Identity, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return Identity{}, err
	}
	defer func() { _ = r.Close() }()
	s.ExtraFiles = append(append([]*os.File{}, s.ExtraFiles...), w)
	p, id, err := StartDetached(s)
	_ = w.Close()
	if err != nil {
		return Identity{}, err
	}
	go func() { _, _ = p.Wait() }() // no zombie while we live
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := bufio.NewReader(r).ReadString('\n')
	if said == saysReady {
		return id, nil
	}
	switch text := strings.TrimSpace(said); {
	case ctx.Err() != nil:
		err = ctx.Err()
	case text != "":
		err = errors.New(text)
	case err == nil:
		err = errors.New("it said nothing")
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	return Identity{}, errors.Join(err, Kill(undo, id, 0))
}

// Ready says that the process serves. Who started it may have died: that is no error.
func Ready(report *os.File) {
	_, _ = report.WriteString(saysReady)
	_ = report.Close()
}

// NotReady says why it does not.
func NotReady(report *os.File, err error) {
	_, _ = report.WriteString(strings.ReplaceAll(err.Error(), "\n", "; ") + "\n")
	_ = report.Close()
}
