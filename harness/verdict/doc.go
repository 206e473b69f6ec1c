// Package verdict judges: from a scenario's expectations and what the probes of a cell saw, it says pass, fail, skip or error for each
// claim. It is pure: it looks at nothing but its arguments, so that a stored run can be judged again, by newer claims or newer rules.
//
// A claim names its rule. A rule ([Rules]) is a small Go function over typed facts, with a name for what it means; it finds that
// the claim holds or is violated, and says in one line what it saw. [JudgeCell] then compares with the expectation:
//
//   - holds expected: pass when it holds, fail when it is violated;
//   - absent expected: the other way round. A surprise in the good direction fails too: either the scenario or the documents are wrong;
//   - refused expected: pass when the daemon ended before it was ready with the words that the scenario says, fail otherwise.
//
// Where the daemon did not start, only the claim start/ready is judged; the others are skipped. Where a guest's call gave no facts though
// the cell ran to its end, the daemon failed it. Where a probe of the host gave none, that is our error. Facts that say nothing about a claim
// are an error as well: a rule that looked at nothing never passes.
//
// A failure which known-differences.toml explains stays a failure, with the reason in Record.Known. An entry of that file
// that explains nothing any more makes the claim fail: it is out of date.
package verdict
