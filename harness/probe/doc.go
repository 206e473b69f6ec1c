// Package probe looks at a daemon from the host: its processes in /proc, what it left in the share, how it ended. A probe writes
// down facts and has no opinion: package verdict has.
//
// The facts are plain structs which are stored as JSON in the run's folder. A fact that could not be learned is an error of the
// probe, never a zero value that looks like an answer.
package probe
