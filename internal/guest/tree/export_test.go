package tree

// What tests of hostile streams need.
const EndRecord = endRecord

var WriteEnd = writeEnd
