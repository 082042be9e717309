package render

import (
	"strings"
	"unicode/utf8"
)

// Column is a column of a table.
type Column struct {
	Head  string
	Right bool // numbers: aligned to the right
	Keep  bool // never cut to fit the terminal
}

// Cell is one field of a table.
type Cell struct {
	Text string
	Tone Tone
}

// Text makes plain cells.
func Text(fields ...string) []Cell {
	cells := make([]Cell, len(fields))
	for i, f := range fields {
		cells[i].Text = f
	}
	return cells
}

// Table is a list for people.
type Table struct {
	Columns []Column
	Rows    [][]Cell
}

const (
	columnGap = 2
	minColumn = 6 // what is left of a column that is cut
)

// Table prints t: a heading, then one line per row, columns two blanks apart. On
// a terminal the widest columns are cut until lines fit; otherwise nothing is.
func (o *Output) Table(t Table) error {
	widths := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		widths[i] = utf8.RuneCountInString(c.Head)
	}
	for _, row := range t.Rows {
		for i := range t.Columns {
			row[i].Text = Clean(row[i].Text)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].Text))
		}
	}
	if o.Width > 0 {
		fit(t.Columns, widths, o.Width)
	}
	var b strings.Builder
	head := make([]Cell, len(t.Columns))
	for i, c := range t.Columns {
		head[i] = Cell{c.Head, ToneTitle}
	}
	for _, row := range append([][]Cell{head}, t.Rows...) {
		o.tableLine(&b, t.Columns, widths, row)
	}
	return o.write(b.String())
}

func (o *Output) tableLine(b *strings.Builder, cols []Column, widths []int, row []Cell) {
	for i, c := range cols {
		text := cut(row[i].Text, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
		text = row[i].Tone.paint(text, o.OutColour)
		switch {
		case c.Right:
			text = pad + text
		case i < len(cols)-1: // no blanks at the end of a line
			text += pad
		}
		b.WriteString(text)
		if i < len(cols)-1 {
			b.WriteString(strings.Repeat(" ", columnGap))
		}
	}
	b.WriteByte('\n')
}

// fit takes from the widest column that may be cut until the sum fits total.
func fit(cols []Column, widths []int, total int) {
	sum := columnGap * (len(cols) - 1)
	for _, w := range widths {
		sum += w
	}
	for ; sum > total; sum-- {
		widest := -1
		for i, c := range cols {
			if !c.Keep && widths[i] > max(minColumn, len(c.Head)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// cut shortens s to n characters, the last one an ellipsis.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n-1, 0)]) + "…"
}
