package render

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes s safe to print on a terminal and keeps it on one line: newlines
// and tabs become spaces; control, format (such as right-to-left overrides) and
// other unprintable characters, and bytes that are not UTF-8, become escapes.
func Clean(s string) string {
	if !strings.ContainsFunc(s, unsafeRune) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[i])+0x100, 16)[1:])
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case unsafeRune(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func unsafeRune(r rune) bool { return r != ' ' && !unicode.IsPrint(r) }

// Tone is the colour that a text has where colours are shown.
type Tone string

// The tones.
const (
	toneNone  Tone = ""
	ToneGood  Tone = "\x1b[32m"
	ToneWarn  Tone = "\x1b[33m"
	ToneBad   Tone = "\x1b[31m"
	ToneMuted Tone = "\x1b[2m"
	ToneTitle Tone = "\x1b[1m"
)

func (t Tone) paint(s string, colour bool) string {
	if !colour || t == toneNone || s == "" {
		return s
	}
	return string(t) + s + "\x1b[0m"
}
