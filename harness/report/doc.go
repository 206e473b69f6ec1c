// Package report turns a stored run into what people read: the terminal's table, a report in the run's folder, and the generated
// pages under docs/.
//
// Everything here is a pure function of the scenarios, the claims, the known differences and one stored run ([result.Stored]): there
// is no clock, and every list is sorted, so that the same tree gives the same bytes. [Table] and [Page] are about a run that has just
// ended. [Docs] computes the pages of the tree from docs/evidence, the one run which somebody has looked at and adopted ([Adopt]);
// [Write] puts them into place, and [Check], which a test calls, fails when they are not what the tree would generate.
//
// The unit is the [state] of one claim for one scenario and one implementation: what the records of all guest kernels say together.
// A record that was judged against another expectation than the scenario has now counts for nothing, and what has no record prints
// as "not shown yet": the pages never say more than the evidence does.
//
// Links lead from a sentence to its record (a line of results.jsonl), and from the record's row on the scenario's page to the facts
// (a line of observations.jsonl). A test follows every link of docs/.
package report
