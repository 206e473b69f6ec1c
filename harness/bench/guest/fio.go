package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// FIO is what fio says of one job.
type FIO struct {
	Ops     int     `json:"ops"`
	Seconds float64 `json:"seconds"`
	IOPS    float64 `json:"iops"`
	Bytes   float64 `json:"bytes"`  // a second
	P50     float64 `json:"p50_us"` // of the time until an operation is complete, µs
	P99     float64 `json:"p99_us"`
}

// fioDirection is the read or write part of a job (fio, JSON output, version 3).
type fioDirection struct {
	TotalIOs int     `json:"total_ios"`
	Runtime  float64 `json:"runtime"` // ms
	IOPS     float64 `json:"iops"`
	Bytes    float64 `json:"bw_bytes"`
	Clat     struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

// parseFIO reads the output of one job with --output-format=json.
func parseFIO(b []byte) (*FIO, error) {
	if at := bytes.IndexByte(b, '{'); at > 0 { // warnings come first
		b = b[at:]
	}
	var out struct {
		Jobs []struct {
			Error int          `json:"error"`
			Read  fioDirection `json:"read"`
			Write fioDirection `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("read what fio says: %w", err)
	}
	if len(out.Jobs) != 1 {
		return nil, fmt.Errorf("fio tells of %d jobs, not of one", len(out.Jobs))
	}
	j := out.Jobs[0]
	if j.Error != 0 {
		return nil, fmt.Errorf("fio failed with error %d", j.Error)
	}
	d := j.Read
	if d.TotalIOs == 0 {
		d = j.Write
	}
	if d.TotalIOs == 0 {
		return nil, errors.New("fio did nothing")
	}
	p := d.Clat.Percentile
	return &FIO{d.TotalIOs, d.Runtime / 1e3, d.IOPS, d.Bytes, p["50.000000"] / 1e3, p["99.000000"] / 1e3}, nil
}
