package cloudinit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"regexp"
	"strings"
)

// part is a part of a message. Its body is as it goes over the wire, encoded as
// its header says.
type part struct {
	header textproto.MIMEHeader
	body   []byte
}

// Bounds for a message of a user's.
const (
	maxParts     = 200
	maxPartDepth = 10
)

// mergeType has cloud-init do with our part what merge does: what is there stays,
// lists get ours appended (docs.cloud-init.io, "Merging user data sections").
const mergeType = "list(append)+dict(no_replace,recurse_list)+str()"

func mergePart(config []byte) part {
	return part{textproto.MIMEHeader{
		"Content-Type": {typeConfig + "; charset=utf-8"}, "Content-Disposition": {`attachment; filename="mvm.cfg"`}, "Merge-Type": {mergeType},
	}, config}
}

// encodePart makes a part whose bytes arrive as they are.
func encodePart(contentType string, data []byte) part {
	h := textproto.MIMEHeader{
		"Content-Type": {contentType + "; charset=utf-8"}, "Content-Disposition": {`attachment; filename="user-data"`}, "Content-Transfer-Encoding": {"base64"},
	}
	const width = 76 // RFC 2045, 6.8
	var b bytes.Buffer
	for line := base64.StdEncoding.EncodeToString(data); line != ""; {
		n := min(width, len(line))
		b.WriteString(line[:n] + "\n")
		line = line[n:]
	}
	return part{h, b.Bytes()}
}

// multipartOf writes a message. The boundary follows from the content: the same
// parts make the same message.
func multipartOf(parts []part) []byte {
	sum := sha256.New()
	for _, p := range parts {
		sum.Write(p.body)
	}
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	_ = w.SetBoundary("mvm-" + hex.EncodeToString(sum.Sum(nil)[:16])) // valid: 36 letters and digits
	fmt.Fprintf(&b, "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"%s\"\r\n\r\n", w.Boundary())
	for _, p := range parts { // a buffer takes everything
		pw, _ := w.CreatePart(p.header)
		_, _ = pw.Write(p.body)
	}
	_ = w.Close()
	return b.Bytes()
}

var messageStart = regexp.MustCompile(`(?i)^\s*(mime-version|content-type):`)

func isMessage(data []byte) bool { return messageStart.Match(data[:min(len(data), 4096)]) }

// readMessage takes the parts out of a MIME message.
func (u *UserData) readMessage(data []byte) error {
	msg, err := mail.ReadMessage(bytes.NewReader(bytes.TrimLeft(data, " \t\r\n")))
	if err != nil {
		return fmt.Errorf("it is no MIME message: %w", err)
	}
	if err := u.readPart(textproto.MIMEHeader(msg.Header), msg.Body, 0); err != nil {
		return err
	}
	if len(u.parts) == 0 {
		return errors.New("the MIME message has no parts")
	}
	return nil
}

func (u *UserData) readPart(h textproto.MIMEHeader, body io.Reader, depth int) error {
	kind, params, err := mime.ParseMediaType(orPlain(h.Get("Content-Type")))
	if err == nil && !strings.Contains(kind, "/") {
		err = errors.New("it has no slash")
	}
	if err != nil {
		return fmt.Errorf("the content type %s: %w", quoteKey(h.Get("Content-Type")), err)
	}
	if strings.HasPrefix(kind, "multipart/") {
		return u.readParts(body, params["boundary"], depth)
	}
	if len(u.parts) >= maxParts {
		return fmt.Errorf("the MIME message has more than %d parts", maxParts)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return fmt.Errorf("the MIME message is cut off or damaged: %w", err)
	}
	plain, err := decodePart(h, data)
	if err != nil {
		return fmt.Errorf("part %d of the MIME message: %w", len(u.parts)+1, err)
	}
	if f, ok := formatOf(plain); kind == typeConfig || kind == "text/plain" && ok && f.contentType == typeConfig {
		if _, err := u.readConfig(plain); err != nil {
			return fmt.Errorf("part %d of the MIME message, %w", len(u.parts)+1, &lineError{0, err.Error()})
		}
	}
	u.parts = append(u.parts, part{partHeader(h), data})
	return nil
}

func (u *UserData) readParts(body io.Reader, boundary string, depth int) error {
	switch {
	case boundary == "":
		return errors.New("the MIME message does not say how its parts are divided")
	case depth > maxPartDepth:
		return errors.New("the MIME message has messages in messages in messages")
	}
	r := multipart.NewReader(body, boundary)
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the MIME message is cut off or damaged: %w", err)
		}
		if err := u.readPart(p.Header, p, depth+1); err != nil {
			return err
		}
	}
}

func orPlain(contentType string) string {
	if contentType == "" {
		return "text/plain"
	}
	return contentType
}

// partHeader is what of a part's header cloud-init reads, each on one line.
func partHeader(h textproto.MIMEHeader) textproto.MIMEHeader {
	out := textproto.MIMEHeader{}
	for _, key := range []string{"Content-Type", "Content-Transfer-Encoding", "Content-Disposition", "Merge-Type", "X-Merge-Type", "Launch-Index"} {
		if v := strings.Map(printable, h.Get(key)); v != "" {
			out.Set(key, v)
		}
	}
	return out
}

// decodePart undoes a part's transfer encoding.
func decodePart(h textproto.MIMEHeader, data []byte) ([]byte, error) {
	switch enc := strings.ToLower(strings.TrimSpace(h.Get("Content-Transfer-Encoding"))); enc {
	case "", "7bit", "8bit", "binary":
		return data, nil
	case "base64":
		return io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(data)))
	case "quoted-printable":
		return io.ReadAll(quotedprintable.NewReader(bytes.NewReader(data)))
	default:
		return nil, fmt.Errorf("the transfer encoding %s is not known", quoteKey(enc))
	}
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}
