// Package result is what a run of the matrix leaves on disk, and how it is read back.
//
// A run is one folder:
//
//	run.json                                      who ran what: host, implementations, kernels, versions, sha256
//	results.jsonl                                 one Record a line: a claim judged in a cell; the last line is the End record
//	cells/<scenario>/<impl>/<kernel>/cell.json    what became of the cell
//	cells/…/observations.jsonl                    one Observation a line: facts as probes saw them, no opinion
//	cells/…/argv, *.log, console, repro.sh        evidence for people
//
// Observations and verdicts are kept apart so that a stored run can be judged again, by a later version of the claims or of the
// judge. A run whose results end without an End record, or with one that counts other records than are there, is broken: it is
// never taken for a success.
package result
