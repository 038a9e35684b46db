/**
 * Becomes a program that serves on a socket which it is handed, as systemd hands sockets over (sd_listen_fds(3)):
 *
 *     node child-launcher.cjs PARENT SOCKET INHERITED PROGRAM WORD…
 *
 * The process binds SOCKET and listens, so that a client finds the socket as soon as the program runs, and nobody there as
 * soon as it has ended. LISTEN_PID has to be the program's own process id, which only the process itself can write into its
 * environment before execve(2); and it asks for SIGTERM at the end of PARENT, its parent, however that ends.
 *
 * Descriptor 3 is a pipe. It closes when the program runs; where that cannot be, one line tells the step that failed and its
 * errno. The socket then becomes number 3, and as many descriptors behind it as INHERITED says are the program's too.
 */
const { writeSync } = require("node:fs");
const koffi = require("koffi");

/** linux/prctl.h, sys/socket.h, sys/un.h, fcntl.h, signal.h, as 64-bit Linux has them everywhere. */
const PR_SET_PDEATHSIG = 1;
const SIGPIPE = 13;
const SIGTERM = 15;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const F_SETFD = 2;
const F_DUPFD_CLOEXEC = 1030;
const BACKLOG = 128;
/** The descriptor of the pipe, and then that of the socket: SD_LISTEN_FDS_START. */
const FIRST = 3;

const [, , parent, path, inherited, ...words] = process.argv;
const libc = koffi.load(null);
const prctl = libc.func("int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)");
const socket = libc.func("int socket(int family, int type, int protocol)");
const bind = libc.func("int bind(int fd, void *address, unsigned int length)");
const listen = libc.func("int listen(int fd, int backlog)");
const dup2 = libc.func("int dup2(int from, int to)");
const fcntl = libc.func("int fcntl(int fd, int command, int argument)");
const signal = libc.func("void *signal(int number, void *handler)");
const execvp = libc.func("int execvp(const char *file, const char **words)");

const pipe = fcntl(FIRST, F_DUPFD_CLOEXEC, FIRST + Number(inherited) + 1);
if (pipe < 0) process.exit(1);

/** The result of a call, which must not be negative. */
function must(step, result) {
  if (result >= 0) return result;
  const errno = koffi.errno();
  writeSync(pipe, `${step} ${errno}\n`);
  process.exit(1);
}

must("prctl", prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0));
if (process.ppid !== Number(parent)) process.exit(1); // it ended before that was asked for

const name = Buffer.from(`${path}\0`);
const address = Buffer.alloc(2 + name.length); // struct sockaddr_un
address.writeUInt16LE(AF_UNIX, 0);
name.copy(address, 2);
const listening = must("socket", socket(AF_UNIX, SOCK_STREAM + SOCK_CLOEXEC, 0));
must("bind", bind(listening, address, address.length));
must("listen", listen(listening, BACKLOG));
must("dup2", dup2(listening, FIRST));

// Node has marked all that it was given to be closed when another program takes its place.
for (let fd = 0; fd <= FIRST + Number(inherited); fd++) must("fcntl", fcntl(fd, F_SETFD, 0));
signal(SIGPIPE, null); // SIG_DFL: Node ignores it, and so would the program
process.env.LISTEN_PID = String(process.pid);
process.env.LISTEN_FDS = "1";
must("exec", execvp(words[0], [...words, null]));
