"""Read web server access logs and report what was slow and what failed."""

import argparse
import re
import sys
from collections import defaultdict
from datetime import datetime

LINE = re.compile(
    r'(?P<host>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] '
    r'"(?P<method>[A-Z]+) (?P<path>\S+) [^"]*" '
    r'(?P<status>\d{3}) (?P<size>\d+|-) (?P<seconds>[0-9.]+)'
)

TIME_FORMAT = "%d/%b/%Y:%H:%M:%S %z"


class ParseError(ValueError):
    """A line of the log does not have the expected form."""

    def __init__(self, number, line):
        super().__init__("line %d: cannot parse %r" % (number, line))
        self.number = number
        self.line = line


class Request:
    """One request, as the server logged it."""

    def __init__(self, host, time, method, path, status, size, seconds):
        self.host = host
        self.time = time
        self.method = method
        self.path = path
        self.status = status
        self.size = size
        self.seconds = seconds

    @classmethod
    def parse(cls, number, line):
        match = LINE.match(line)
        if match is None:
            raise ParseError(number, line)
        size = match.group("size")
        return cls(
            host=match.group("host"),
            time=datetime.strptime(match.group("time"), TIME_FORMAT),
            method=match.group("method"),
            path=match.group("path").split("?")[0],
            status=int(match.group("status")),
            size=0 if size == "-" else int(size),
            seconds=float(match.group("seconds")),
        )

    @property
    def failed(self):
        return self.status >= 500


class PathStats:
    """What is known about all requests to one path."""

    def __init__(self, path):
        self.path = path
        self.count = 0
        self.failures = 0
        self.bytes = 0
        self.seconds = []

    def add(self, request):
        self.count += 1
        self.bytes += request.size
        self.seconds.append(request.seconds)
        if request.failed:
            self.failures += 1

    def mean(self):
        if not self.seconds:
            return 0.0
        return sum(self.seconds) / len(self.seconds)

    def percentile(self, fraction):
        if not self.seconds:
            return 0.0
        ordered = sorted(self.seconds)
        index = int(fraction * (len(ordered) - 1))
        return ordered[index]


def read_requests(lines, strict=False):
    """Yield a request for every line that can be parsed."""
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line:
            continue
        try:
            yield Request.parse(number, line)
        except ParseError as error:
            if strict:
                raise
            print(error, file=sys.stderr)


def collect(requests):
    """Group requests by their path."""
    stats = {}
    for request in requests:
        if request.path not in stats:
            stats[request.path] = PathStats(request.path)
        stats[request.path].add(request)
    return stats


def slowest(stats, limit):
    """Return the paths with the largest 95th percentile first."""
    ordered = sorted(stats.values(), key=lambda item: item.percentile(0.95), reverse=True)
    return ordered[:limit]


def print_report(stats, limit, out=sys.stdout):
    """Write one line for each of the slowest paths."""
    out.write("%8s %8s %8s %8s  %s\n" % ("count", "failed", "mean", "p95", "path"))
    for item in slowest(stats, limit):
        out.write(
            "%8d %8d %8.3f %8.3f  %s\n"
            % (item.count, item.failures, item.mean(), item.percentile(0.95), item.path)
        )


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="log files, or standard input if none")
    parser.add_argument("--limit", type=int, default=20, help="number of paths to show")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad line")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    requests = []
    for name in args.files:
        with open(name, encoding="utf-8") as file:
