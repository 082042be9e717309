package wire

import (
	"encoding/hex"
	"errors"
	"io"
)

// A copy moves its data beside SSH: its encryption in the guest would take more time
// than all else, and the stream leaves neither the host nor the guest. Who may have the
// data is settled over SSH all the same: the host opens a stream to the agent's next
// port, says a ticket there that it has made up, and names the ticket in the Exec whose
// standard streams it is to be.

// DataPort is the port for streams of data of an agent that listens on port.
func DataPort(port uint32) uint32 { return port + 1 }

// TicketLen is the length of a ticket, in hex digits of a random number.
const TicketLen = 64

// DataOK is the agent's answer to a ticket.
const DataOK = "OK\n"

// WriteTicket sends a ticket.
func WriteTicket(w io.Writer, ticket string) error {
	_, err := io.WriteString(w, ticket+"\n")
	return err
}

// ReadTicket reads a ticket and nothing of what follows.
func ReadTicket(r io.Reader) (string, error) {
	var b [TicketLen + 1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return "", err
	}
	ticket := string(b[:TicketLen])
	if _, err := hex.DecodeString(ticket); err != nil || b[TicketLen] != '\n' {
		return "", errors.New("this is no ticket")
	}
	return ticket, nil
}
