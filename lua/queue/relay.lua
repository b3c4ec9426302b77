#!lua
-- relay: takes what another queue's handlers have emitted, in the order of its outbox; what was taken before is skipped.
-- KEYS: jobs hash, ready zset, scheduled zset, open zset, claims hash, config hash, totals hash, bell list, seen hash
-- ARGV: clock_ms (ms, 0: server time), source (the queue it comes from), count (jobs, at most 1000); then per job: sequence (of the outbox), envelope (bytes), priority (0-9), due (UTC ms, 0: now)
-- Returns: {now ms, taken jobs}
-- Guards: I1 I5 I8 I9 I10
-- Repeat: no second effect
-- Cost: O(log n) per job
local jobs, ready, scheduled, open, claims, config, totals, bell, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local clock_ms, source, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIELDS, FIRST = 4, 4

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * FIELDS then
  return redis.error_reply('PROTOCOL relay takes 1 to 1000 jobs of 4 fields')
end
--@include clock
--@include number
--@include bell
--@include row

local last = redis.call('HGET', seen, source)
redis.call('HLEN', jobs)
redis.call('ZCARD', ready)
redis.call('ZCARD', scheduled)
redis.call('ZCARD', open)
redis.call('HLEN', claims)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'

-- A sequence is "ms-number", both of which only grow.
local function is_after(sequence, before)
  local ms, number = string.match(sequence, '^(%d+)-(%d+)$')
  local before_ms, before_number = string.match(before, '^(%d+)-(%d+)$')
  ms, before_ms = tonumber(ms), tonumber(before_ms)
  return ms > before_ms or ms == before_ms and tonumber(number) > tonumber(before_number)
end

-- Sorts as the sequence does where many have one place, up to a million jobs a millisecond.
local function id_of(sequence)
  local ms, number = string.match(sequence, '^(%d+)-(%d+)$')
  return source .. '-' .. ms .. '-' .. string.rep('0', 6 - #number) .. number
end

local records, opened, lined_up, delayed, rows = {}, {}, {}, {}, {}
local newest = last or '0-0'
if not string.match(newest, '^%d+-%d+$') then
  return redis.error_reply('PROTOCOL foreign sequence of ' .. source .. ' in ' .. seen)
end
for index = 0, count - 1 do
  local at = FIRST + index * FIELDS
  local sequence, envelope, priority, due = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  if not string.match(sequence, '^%d+-%d+$') or not string.match(priority, '^%d$') or not due or not (due >= 0 and due < PRIORITY_STEP) then
    return redis.error_reply('PROTOCOL relay: ' .. sequence .. ' has no priority from 0 to 9 or no time in ms')
  end
  if is_after(sequence, newest) then
    newest = sequence
    local id = id_of(sequence)
    table.insert(records, id)
    table.insert(records, envelope)
    table.insert(opened, now_ms)
    table.insert(opened, id)
    if due > now_ms then
      table.insert(delayed, whole(due))
      table.insert(delayed, id)
      table.insert(rows, id)
      table.insert(rows, make_row('-', 0, 0, 0, priority * PRIORITY_STEP + due))
    else
      table.insert(lined_up, whole(priority * PRIORITY_STEP + now_ms))
      table.insert(lined_up, id)
    end
  end
end
if #records > 0 then
  redis.call('HSET', jobs, unpack(records))
  redis.call('ZADD', open, unpack(opened))
  redis.call('HINCRBY', totals, 'submitted', #records / 2)
  if #delayed > 0 then
    redis.call('HSET', claims, unpack(rows))
    redis.call('ZADD', scheduled, unpack(delayed))
  end
  if #lined_up > 0 then
    redis.call('ZADD', ready, unpack(lined_up))
  end
  redis.call('HSET', seen, source, newest)
  if not paused then
    ring()
  end
end
return {now_ms, #records / 2}
