#!lua flags=allow-oom
-- await: asks to be told of a job's finish on a channel, or answers at once with the results row where it has finished.
-- KEYS: jobs hash, results hash, waiters hash
-- ARGV: id, channel (of the runtime that waits)
-- Returns: results row | 1 registered | 0 no such job | -1 as many channels as may wait do already
-- Guards: I8
-- Repeat: same answer
-- Cost: O(1)
local jobs, results, waiters = KEYS[1], KEYS[2], KEYS[3]
local id, channel = ARGV[1], ARGV[2]
local MOST_CHANNELS = 64

local line = redis.call('HGET', results, id)
if line then
  return line
end
if redis.call('HEXISTS', jobs, id) == 0 then
  return 0
end
local channels = {channel}
for known in string.gmatch(redis.call('HGET', waiters, id) or '', '%S+') do
  if known ~= channel then
    table.insert(channels, known)
  end
end
if #channels > MOST_CHANNELS then
  return -1
end
redis.call('HSET', waiters, id, table.concat(channels, ' '))
return 1
