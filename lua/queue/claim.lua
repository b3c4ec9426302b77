#!lua flags=allow-oom
-- claim: promotes due jobs, then leases the first jobs in line to one runtime under one new token.
-- KEYS: jobs hash, ready zset, scheduled zset, running zset, started zset, claims hash, config hash, bell list
-- ARGV: clock_ms (ms, 0: server time), count (jobs, at most 1000), lease_ms (ms), token (never used before), budget (bytes of envelopes, one job is always taken), most_crashes (the crash that ends a job)
-- Returns: {now ms, next due ms or 0, ids, envelopes (false: lost record), claims rows before (false: first claim)}
-- Guards: I1 I2 I4 I8 I9
-- Repeat: no second effect but one lease: jobs of a lost reply wait for their lease to expire
-- Cost: O(log n) per job
local jobs, ready, scheduled, running, started, claims, config, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local clock_ms, count, lease_ms, token, budget, most_crashes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local MOST_CHUNK = 16

if count < 1 or count > 1000 then
  return redis.error_reply('PROTOCOL claim takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include promote

redis.call('HLEN', jobs)
redis.call('ZCARD', running)
redis.call('ZCARD', started)
redis.call('LLEN', bell)
if redis.call('HGET', config, 'paused') == '1' then
  return {now_ms, '0', {}, {}, {}}
end
promote(1000)

-- Envelopes are read in chunks that grow while they are small, so that a line of large ones reads one, or a few.
local line = redis.call('ZRANGE', ready, 0, count - 1, 'WITHSCORES')
local ids, places, envelopes, claimed, bytes = {}, {}, {}, 0, 0
local first, chunk_size = 1, 1
for _ = 1, count do
  if first > #line then
    break
  end
  local chunk, length = {}, 0
  for at = first, math.min(first + 2 * chunk_size - 2, #line - 1), 2 do
    length = length + 1
    chunk[length] = line[at]
  end
  for index, envelope in ipairs(redis.call('HMGET', jobs, unpack(chunk))) do
    bytes = bytes + (envelope and #envelope or 0)
    if bytes > budget and claimed > 0 then
      break
    end
    claimed = claimed + 1
    ids[claimed], places[claimed], envelopes[claimed] = chunk[index], line[first + 2 * index - 1], envelope
  end
  if bytes > budget then
    break
  end
  first = first + 2 * chunk_size
  chunk_size = math.min(2 * chunk_size, MOST_CHUNK)
end

local before = {}
if claimed > 0 then
  before = redis.call('HMGET', claims, unpack(ids))
  local deadline, start, first_row = whole(now_ms + lease_ms), whole(now_ms), token .. ':1:0:0:'
  local rows, deadlines, starts, texts = {}, {}, {}, {}
  for index = 1, claimed do
    local id, row = ids[index], nil
    if before[index] then
      local _, attempt, failures, crashes, place = parse_row(before[index], id)
      -- A job on its last chance waits until it may run alone; a crash before that is not its own.
      if crashes > 0 and crashes + 1 >= most_crashes then
        crashes = crashes + WAITING
      end
      row = make_row(token, attempt + 1, failures, crashes, place)
    else
      local place = places[index]
      texts[place] = texts[place] or whole(place)
      row = first_row .. texts[place]
    end
    local at = 2 * index
    rows[at - 1], rows[at] = id, row
    deadlines[at - 1], deadlines[at] = deadline, id
    starts[at - 1], starts[at] = start, id
  end
  redis.call('HSET', claims, unpack(rows))
  redis.call('ZADD', running, unpack(deadlines))
  redis.call('ZADD', started, unpack(starts))
  redis.call('ZREMRANGEBYRANK', ready, 0, claimed - 1)
end
if redis.call('ZCARD', ready) > 0 then
  ring()
end
return {now_ms, next_due(), ids, envelopes, before}
