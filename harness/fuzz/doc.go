// Package fuzz drives a live daemon of any kind, in its sandbox and without a virtual machine, with random sessions of a guest: requests
// that a kernel could send, held against the same operations on a local directory, and requests and descriptor chains that no kernel
// sends, on several queues, with guest memory changing under them.
//
// A session is a list of [Step]s. A step names what it works on by numbers which are taken modulo what is there when it runs, so that a
// list stays meaningful whatever is left out of it: that is what makes it small. [Execute] runs a list against a fresh process and says
// what was found; [Minimise] leaves out what is not needed for it; [Replay] is the list as a file, one line of JSON a step, which any
// daemon can be given again.
//
// What is looked for, after every step and at the end:
//
//   - the process lives, and ends politely when its front-end leaves (died, hangs);
//   - each request comes back, and the queue and its neighbours serve on (never done, queue dead, root lost);
//   - an answer contradicts neither itself nor its request (bad reply), and is what a local directory answers (wrong answer);
//   - nothing beside the share changes or is shown (escaped);
//   - the daemon's threads have the credentials that they began with, and its descriptors go with the guest's references (credentials,
//     descriptors).
package fuzz
