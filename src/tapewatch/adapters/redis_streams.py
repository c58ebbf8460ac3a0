"""How streams stand on a Redis server: names, ids, fields, and the scripts that look at them or change them.

A stream's entry has the fields `after` (the position before it) and `entry` (the payload); its id is its position. Each
script names one key, so all of them run on a Cluster too.
"""

from typing import Any, NamedTuple

from tapewatch.ports import Position

NOTHING = Position(0, 0)


class Row(NamedTuple):
    """An entry as it is stored."""

    position: Position
    after: Position
    payload: bytes


def key_of(stream: str) -> str:
    """``ticks:0`` is kept under ``ticks:{0}``: in a Cluster all streams of a partition live together."""
    topic, colon, partition = stream.rpartition(":")
    return f"{topic}:{{{partition}}}" if colon else stream


def id_of(position: Position) -> str:
    return f"{position.epoch}-{position.sequence}"


def position_of(id_: bytes) -> Position:
    epoch, _, sequence = id_.partition(b"-")
    return Position(int(epoch), int(sequence))


def rows_of(stored: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Row]:
    return [Row(position_of(id_), position_of(body[b"after"]), body[b"entry"]) for id_, body in stored]


def end_of(reply: Any) -> Position | None:
    """What `APPEND` and `PUT_BACK` say: None when it was done, else where the stream ends."""
    return None if reply is None else position_of(reply)


_LAST = """
local function last()
  if redis.call('EXISTS', KEYS[1]) == 0 then return '0-0' end
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
"""
TAIL = _LAST + "return last()"
"""The last position that the stream ever took; ``0-0`` for none."""

# Within an epoch: the entry before stands in the log and the server takes only greater ids, so that one is the last. It
# spares the look at the stream's end, which copies two entries.
APPEND = (
    _LAST
    + """
if string.sub(ARGV[1], -2) == '-1' or #redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2]) == 0 then
  local now = last()
  if now ~= ARGV[2] then return now end
end
local taken = redis.pcall('XADD', KEYS[1], ARGV[4], '~', ARGV[5], ARGV[1], 'after', ARGV[2], 'entry', ARGV[3])
if type(taken) == 'table' and taken.err then
  if string.find(taken.err, 'equal or smaller', 1, true) then return last() end
  return taken
end
return false
"""
)
"""Position, the one before it, payload, and how to trim: appended if the stream ends with the one before."""
PUT_BACK = (
    _LAST
    + """
local now = last()
if now ~= ARGV[1] then return now end
local after = ARGV[1]
for i = 2, #ARGV, 2 do
  redis.call('XADD', KEYS[1], ARGV[i], 'after', after, 'entry', ARGV[i + 1])
  after = ARGV[i]
end
return false
"""
)
"""The position where the stream must end, then positions and payloads that follow it."""

# Sequences are contiguous within an epoch, and an epoch's first entry names the last one of the epoch before.
_FOLLOWING = (
    _LAST
    + """
local function parts(id)
  local epoch, sequence = string.match(id, '^(%d+)-(%d+)$')
  return epoch, tonumber(sequence)
end
local function following(id)
  local wanted, sequence = parts(id)
  local epoch, count = parts(last())
  local passed = 0
  while epoch ~= wanted do
    local first = redis.call('XRANGE', KEYS[1], epoch .. '-1', epoch .. '-1')
    if #first == 0 then return redis.call('XLEN', KEYS[1]) end
    passed = passed + count
    epoch, count = parts(first[1][2][2])
    if epoch == '0' then return passed end
  end
  return math.max(0, passed + count - sequence)
end
local function pairs_of(list)
  local map = {}
  for i = 1, #list, 2 do map[list[i]] = list[i + 1] end
  return map
end
"""
)
REACHED = (
    _FOLLOWING
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
local added = pairs_of(redis.call('XINFO', 'STREAM', KEYS[1]))['entries-added']
local read = math.max(0, added - following(ARGV[2]))
if redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2], 'ENTRIESREAD', read).err then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'ENTRIESREAD', read)
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[1])
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[1])
"""
)
"""Keep a reader's position as a consumer group of its name, whose `lag` others can read. Its only consumer, of the same
name, is made anew, so that its idle time tells when the reader was seen.
"""
LAG = (
    _FOLLOWING
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  group = pairs_of(group)
  if group['name'] == ARGV[1] then return following(group['last-delivered-id']) end
end
return false
"""
)
READERS = (
    _FOLLOWING
    + """
local readers = {}
if redis.call('EXISTS', KEYS[1]) == 0 then return readers end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  group = pairs_of(group)
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group['name'])) do
    consumer = pairs_of(consumer)
    if consumer['name'] == group['name'] and consumer['idle'] <= tonumber(ARGV[1]) then
      readers[#readers + 1] = {group['name'], group['last-delivered-id']}
    end
  end
end
return readers
"""
)
"""Names and positions of those who said where they are within so many ms."""
