package partition

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mvmctl/mvm"
	"github.com/mvmctl/mvm/internal/run"
	"github.com/mvmctl/mvm/internal/testenv"
)

// scripts are what sfdisk(8) is asked to make on a disk of 64 MiB.
var scripts = map[string]string{
	"gpt": `label: gpt
unit: sectors
size=2048, type=21686148-6449-6E6F-744E-656564454649, name="BIOS boot"
size=20480, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
size=40960, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root ä"
`,
	"gpt with gaps": "label: gpt\n3 : start=4096, size=2048\n1 : start=20480, size=4096\n",
	"mbr":           "label: dos\nsize=2048, type=83, bootable\nsize=4096, type=82\n",
	"logical": `label: dos
size=2048, type=83
size=100000, type=5
size=4096, type=83
size=8192, type=82
type=83
`,
	"logical lba": "label: dos\nsize=90000, type=f\nsize=4096, type=83\nsize=4096, type=83\n",
}

// sfdisk makes a disk and says what is on it.
func sfdisk(t *testing.T, script string, more ...string) (path string, want []Entry) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 64<<20)); err != nil {
		t.Fatal(err)
	}
	host := &run.Host{}
	if _, err := host.Run(t.Context(), run.Cmd{Name: "sfdisk", Args: append(append([]string{"-q"}, more...), path), Stdin: strings.NewReader(script)}); err != nil {
		t.Fatal(err)
	}
	res, err := host.Run(t.Context(), run.Cmd{Name: "sfdisk", Args: []string{"-J", path}})
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            int64
			}
		}
	}
	if err := json.Unmarshal(res.Stdout, &out); err != nil {
		t.Fatal(err)
	}
	for _, p := range out.PartitionTable.Partitions {
		e := Entry{Type: strings.ToLower(p.Type), UUID: strings.ToLower(p.UUID), Label: p.Name, Start: p.Start * 512, Size: p.Size * 512}
		if len(e.Type) == 1 {
			e.Type = "0" + e.Type
		}
		if _, err := fmt.Sscanf(strings.TrimPrefix(p.Node, path), "%d", &e.Number); err != nil {
			t.Fatal(err)
		}
		if e.Type != "05" && e.Type != "0f" {
			want = append(want, e)
		}
	}
	return path, want
}

func readFile(t *testing.T, path string) (Table, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Read(f, st.Size())
}

func TestReadsWhatSfdiskMakes(t *testing.T) {
	testenv.Require(t, "sfdisk")
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			path, want := sfdisk(t, script)
			got, err := readFile(t, path)
			if d := cmp.Diff(want, got.Entries); err != nil || d != "" || !strings.HasPrefix(name, got.Kind) && got.Kind == GPT {
				t.Error(err, got.Kind, d)
			}
		})
	}
}

func TestReadsTheBackup(t *testing.T) {
	testenv.Require(t, "sfdisk")
	path, want := sfdisk(t, scripts["gpt"])
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(make([]byte, 512), 512); err != nil {
		t.Fatal(err)
	}
	got, err := readFile(t, path)
	if d := cmp.Diff(want, got.Entries); err != nil || d != "" {
		t.Error(err, d)
	}
	if _, err := f.WriteAt([]byte("X"), 64<<20-500); err != nil {
		t.Fatal(err)
	}
	if _, err := readFile(t, path); !errors.Is(err, mvm.ErrBroken) || mvm.HintOf(err) == "" {
		t.Errorf("with both tables damaged: %v", err)
	}
}

// gptDisk is a disk of sectors of so many bytes with the given from and to.
func gptDisk(sector, sectors int, parts ...[2]uint64) []byte {
	d, le := make([]byte, sector*sectors), binary.LittleEndian
	d[510], d[511], d[mbrEntries+4] = 0x55, 0xaa, typeGPT
	le.PutUint32(d[mbrEntries+12:], uint32(sectors-1))
	d[mbrEntries+8] = 1
	table := d[2*sector : 2*sector+128*128]
	for i, p := range parts {
		e := table[i*128:]
		e[0], e[16] = 1, byte(i+1)
		le.PutUint64(e[32:], p[0])
		le.PutUint64(e[40:], p[1])
	}
	h := d[sector:]
	copy(h, gptSignature)
	le.PutUint32(h[12:], gptHeaderBytes)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[40:], 40)
	le.PutUint64(h[48:], uint64(sectors-1))
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeaderBytes]))
	return d
}

// mbrDisk has one boot record per position, of slots of type, start and size.
func mbrDisk(sectors int, records map[int][]mbrSlot) []byte {
	d := make([]byte, sectors*sectorBytes)
	for at, slots := range records {
		b := d[at*sectorBytes:]
		b[510], b[511] = 0x55, 0xaa
		for i, s := range slots {
			e := b[mbrEntries+i*mbrEntry:]
			e[0], e[4] = s.status, s.typ
			binary.LittleEndian.PutUint32(e[8:], uint32(s.start))
			binary.LittleEndian.PutUint32(e[12:], uint32(s.size))
		}
	}
	return d
}

func TestSectorsOf4096(t *testing.T) {
	d := gptDisk(4096, 100, [2]uint64{40, 49})
	got, err := Read(bytes.NewReader(d), int64(len(d)))
	if err != nil || len(got.Entries) != 1 || got.Entries[0].Start != 40*4096 || got.Entries[0].Size != 10*4096 {
		t.Error(got, err)
	}
}

var hostile = map[string]struct {
	disk []byte
	says string
}{
	"gpt overlap":            {gptDisk(512, 200, [2]uint64{40, 99}, [2]uint64{99, 120}), "partitions 1 and 2 overlap"},
	"gpt same":               {gptDisk(512, 200, [2]uint64{40, 99}, [2]uint64{40, 99}), "overlap"},
	"gpt behind the end":     {gptDisk(512, 200, [2]uint64{40, 1 << 33}), "outside"},
	"gpt backwards":          {gptDisk(512, 200, [2]uint64{90, 50}), "outside"},
	"gpt over its own table": {gptDisk(512, 200, [2]uint64{0, 50}), "outside"},
	"gpt cut short":          {gptDisk(512, 200, [2]uint64{40, 199})[:150*512], "leads out of the disk"},
	"gpt promised only":      {gptDisk(512, 200)[:512], "says that it has a GPT"},
	"mbr overlap":            {mbrDisk(100, map[int][]mbrSlot{0: {{0, 0x83, 10, 20}, {0, 0x83, 29, 5}}}), "overlap"},
	"mbr out of range":       {mbrDisk(100, map[int][]mbrSlot{0: {{0, 0x83, 10, 91}}}), "leads out of the disk"},
	"mbr over itself":        {mbrDisk(100, map[int][]mbrSlot{0: {{0, 0x83, 0, 5}}}), "leads out of the disk"},
	"two extended":           {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 20}, {0, 0xf, 40, 5}}}), "2 extended"},
	"chain into the void":    {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 200, 20}}}), "leads out of the disk"},
	"chain cut":              {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 20}}}), "is cut"},
	"chain in a circle":      {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 50}}, 10: {{0, 0x83, 1, 2}, {0, 5, 10, 5}}, 20: {{0, 0x83, 1, 2}, {0, 5, 10, 5}}}), "leads back"},
	"chain onto itself":      {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 50}}, 10: {{}, {0, 5, 0, 5}}}), "leads back"},
	"logical too long":       {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 50}}, 10: {{0, 0x83, 1, 60}}}), "out of the extended"},
	"logical over primary":   {mbrDisk(100, map[int][]mbrSlot{0: {{0, 5, 10, 50}, {0, 0x83, 12, 5}}, 10: {{0, 0x83, 1, 10}}}), "overlap"},
}

func TestRefusesWhatIsNotSound(t *testing.T) {
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			got, err := Read(bytes.NewReader(c.disk), int64(len(c.disk)))
			if !errors.Is(err, mvm.ErrBroken) || !strings.Contains(fmt.Sprint(err), c.says) || mvm.HintOf(err) == "" {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestNoTable(t *testing.T) {
	sector := make([]byte, 512)
	sector[510], sector[511] = 0x55, 0xaa
	text := bytes.Repeat([]byte("boot code "), 52)[:512]
	text[510], text[511] = 0x55, 0xaa
	for name, d := range map[string][]byte{"empty": {}, "short": make([]byte, 100), "zeros": make([]byte, 1<<20), "a signature only": sector, "boot code": text} {
		if got, err := Read(bytes.NewReader(d), int64(len(d))); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.disk)
	}
	f.Add(gptDisk(512, 100, [2]uint64{40, 60}, [2]uint64{61, 80}))
	f.Add(mbrDisk(100, map[int][]mbrSlot{0: {{0x80, 0x83, 1, 9}, {0, 5, 10, 50}}, 10: {{0, 0x83, 1, 2}, {0, 5, 10, 5}}, 20: {{0, 0x83, 1, 2}}}))
	f.Fuzz(func(t *testing.T, d []byte) {
		got, err := Read(bytes.NewReader(d), int64(len(d)))
		if err != nil {
			return
		}
		for i, a := range got.Entries {
			if a.Start <= 0 || a.Size <= 0 || a.Start+a.Size > int64(len(d)) {
				t.Errorf("%+v leads out of %d bytes", a, len(d))
			}
			for _, b := range got.Entries[i+1:] {
				if a.Start < b.Start+b.Size && b.Start < a.Start+a.Size {
					t.Errorf("%+v overlaps %+v", a, b)
				}
			}
		}
	})
}
