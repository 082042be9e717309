package render

import (
	"fmt"
	"strconv"
	"time"
)

// Size writes a number of bytes in powers of 1024, with one decimal below ten.
func Size(bytes int64) string {
	if bytes < 0 {
		return "-" + Size(-max(bytes, -1<<62))
	}
	const units = "KMGTPE"
	if bytes < 1024 {
		return strconv.FormatInt(bytes, 10) + " B"
	}
	f := float64(bytes) / 1024
	u := 0
	for f >= 1023.5 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[u])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[u])
}

// MiB writes a number of mebibytes.
func MiB(n int) string { return Size(int64(n) << 20) }

// Took writes how long something took, as short as is useful.
func Took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return "0 ms"
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}

// Age writes the time since an ISO 8601 instant, in its largest unit: "5s",
// "12m", "3h", "40d". An instant that cannot be read gives "-".
func (o *Output) Age(at string) string {
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return "-"
	}
	d := max(o.Now().Sub(t), 0)
	for _, u := range []struct {
		unit  time.Duration
		until time.Duration
		name  string
	}{
		{time.Second, 2 * time.Minute, "s"},
		{time.Minute, 2 * time.Hour, "m"},
		{time.Hour, 48 * time.Hour, "h"},
		{24 * time.Hour, 1000 * 24 * time.Hour, "d"},
	} {
		if d < u.until {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(d/(365*24*time.Hour)), 10) + "y"
}

// ShortID returns the first 12 characters of an id, enough to select by.
func ShortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// OrDash returns s, or "-" when it is empty.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
