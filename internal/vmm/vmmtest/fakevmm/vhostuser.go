package fakevmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Requests of the vhost-user protocol that a frontend sends before its guest drives
// the disk (QEMU's docs/interop/vhost-user.rst). Numbers are in the host's order.
const (
	vuGetFeatures         = 1
	vuSetOwner            = 3
	vuGetProtocolFeatures = 15
	vuSetProtocolFeatures = 16
	vuGetConfig           = 24

	vuVersion        = 1
	vuProtocolConfig = 1 << 9
	vuConfigSize     = 60 // of struct virtio_blk_config

	featureProtocol = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureReadOnly = 1 << 5  // VIRTIO_BLK_F_RO
)

// vuPatience bounds the wait for a server's answer. Firecracker has no bound.
const vuPatience = time.Minute

// vuDisk is a disk that a vhost-user server has, as the guest would see it.
type vuDisk struct {
	conn     net.Conn
	readOnly bool
	sectors  uint64 // of 512 bytes
}

// connectDisk takes a disk over as Firecracker does when it makes the device
// (VhostUserBlockImpl::new in its source).
func connectDisk(path string) (*vuDisk, error) {
	conn, err := net.Dial("unix", path) //nolint:noctx // it is there or it is not
	if err != nil {
		return nil, fmt.Errorf("VhostUserBackend(VhostUser(Connect(%w)))", err)
	}
	d := &vuDisk{conn: conn}
	_ = conn.SetDeadline(time.Now().Add(vuPatience))
	if err := d.negotiate(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("VhostUserBackend(VhostUser(%w))", err)
	}
	return d, nil
}

func (d *vuDisk) negotiate() error {
	if err := d.send(vuSetOwner, nil); err != nil {
		return err
	}
	features, err := d.ask(vuGetFeatures, nil, 8)
	if err != nil {
		return err
	}
	has := binary.NativeEndian.Uint64(features)
	if has&featureProtocol == 0 {
		return errors.New("the server has no protocol features")
	}
	d.readOnly = has&featureReadOnly != 0
	protocol, err := d.ask(vuGetProtocolFeatures, nil, 8)
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint64(protocol)&vuProtocolConfig == 0 {
		return errors.New("the server does not tell the disk's size")
	}
	if err := d.send(vuSetProtocolFeatures, binary.NativeEndian.AppendUint64(nil, vuProtocolConfig)); err != nil {
		return err
	}
	request := binary.NativeEndian.AppendUint32(nil, 0) // offset
	request = binary.NativeEndian.AppendUint32(request, vuConfigSize)
	request = binary.NativeEndian.AppendUint32(request, 1) // flags: writable
	config, err := d.ask(vuGetConfig, append(request, make([]byte, vuConfigSize)...), len(request)+vuConfigSize)
	if err != nil {
		return err
	}
	d.sectors = binary.LittleEndian.Uint64(config[12:])
	return nil
}

func (d *vuDisk) send(request uint32, payload []byte) error {
	head := binary.NativeEndian.AppendUint32(nil, request)
	head = binary.NativeEndian.AppendUint32(head, vuVersion)
	head = binary.NativeEndian.AppendUint32(head, uint32(len(payload))) //nolint:gosec // small
	_, err := d.conn.Write(append(head, payload...))
	return err
}

// ask sends a request and returns the answer, which has to be of a size.
func (d *vuDisk) ask(request uint32, payload []byte, size int) ([]byte, error) {
	if err := d.send(request, payload); err != nil {
		return nil, err
	}
	var head [12]byte
	if _, err := io.ReadFull(d.conn, head[:]); err != nil {
		return nil, err
	}
	if got := binary.NativeEndian.Uint32(head[:]); got != request || binary.NativeEndian.Uint32(head[8:]) != uint32(size) { //nolint:gosec // small
		return nil, fmt.Errorf("request %d is answered by %d with %d bytes", request, got, binary.NativeEndian.Uint32(head[8:]))
	}
	answer := make([]byte, size)
	_, err := io.ReadFull(d.conn, answer)
	return answer, err
}
