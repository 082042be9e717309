package listing

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"time"
)

// Object is a file in a bucket.
type Object struct {
	Key      string
	Size     int64
	Modified time.Time
}

// S3Page is one page of a bucket's listing (ListObjectsV2).
type S3Page struct {
	Objects []Object
	Next    string // continuation token of the next page, "" on the last
}

// S3 reads a page of the listing of a bucket
// (docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html). The answer of
// a bucket that says no is an error with what it says.
func S3(page []byte) (S3Page, error) {
	const what = "the bucket's listing"
	d := xml.NewDecoder(bytes.NewReader(page))
	var root struct {
		XMLName  xml.Name
		Code     string
		Message  string
		Contents []struct {
			Key          string
			Size         int64
			LastModified time.Time
		}
		IsTruncated           bool
		NextContinuationToken string
	}
	if err := d.Decode(&root); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return S3Page{}, unreadable(what, err)
	}
	switch {
	case root.XMLName.Local == "Error":
		return S3Page{}, unreadable(what, errors.New(root.Code+": "+root.Message))
	case root.XMLName.Local != "ListBucketResult":
		return S3Page{}, unreadable(what, errors.New("it is no listing of a bucket"))
	case root.IsTruncated && root.NextContinuationToken == "":
		return S3Page{}, unreadable(what, errors.New("it ends in the middle and does not say how to go on"))
	case len(root.Contents) > maxEntries:
		return S3Page{}, unreadable(what, errors.New("it is endless"))
	}
	var p S3Page
	for _, c := range root.Contents {
		p.Objects = append(p.Objects, Object{c.Key, c.Size, c.LastModified})
	}
	if root.IsTruncated {
		p.Next = root.NextContinuationToken
	}
	return p, nil
}
