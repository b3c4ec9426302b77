-- A results row is kind:TOKEN:attempt:failures:crashes:place:submitted ms:started ms, a newline, the result as JSON.
local ended, result_rows, ends = {}, {}, {done = {}, dead = {}}
local ended_count = 0
local end_time = whole(now_ms)
local CANCELLED = '{"error": "JobCancelled", "message": "cancelled on request"}'

-- Per id, whether it is to be cancelled.
local function cancel_wishes(ids)
  return #ids > 0 and redis.call('ZCARD', cancels) > 0 and redis.call('ZMSCORE', cancels, unpack(ids)) or {}
end

local function finish(id, kind, row, submitted, started, result)
  ended_count = ended_count + 1
  ended[ended_count] = id
  result_rows[2 * ended_count - 1] = id
  result_rows[2 * ended_count] = kind .. ':' .. row .. ':' .. (submitted or '0') .. ':' .. (started or '0') .. '\n' .. result
  local of_kind = ends[kind]
  local length = #of_kind
  of_kind[length + 1], of_kind[length + 2] = end_time, id
end

-- Comes last: a message that may not be published must not keep anything from being written.
local function tell_waiters()
  if #ended == 0 or redis.call('HLEN', waiters) == 0 then
    return
  end
  for index, channels in ipairs(redis.call('HMGET', waiters, unpack(ended))) do
    for channel in string.gmatch(channels or '', '%S+') do
      redis.pcall('PUBLISH', channel, 'result\n' .. waiters .. '\n' .. ended[index] .. '\n' .. result_rows[2 * index])
    end
  end
  redis.call('HDEL', waiters, unpack(ended))
end

-- Results and final states stand before the jobs leave the sets they were in.
local function write_finished()
  if #ended == 0 then
    return
  end
  redis.call('HSET', results, unpack(result_rows))
  for kind, scored in pairs({[done] = ends.done, [dead] = ends.dead}) do
    if #scored > 0 then
      redis.call('ZADD', kind, unpack(scored))
      redis.call('HINCRBY', totals, kind == done and 'done' or 'dead', #scored / 2)
    end
  end
  redis.call('ZREM', running, unpack(ended))
  redis.call('ZREM', started, unpack(ended))
  redis.call('ZREM', open, unpack(ended))
  redis.call('HDEL', claims, unpack(ended))
  if redis.call('ZCARD', cancels) > 0 then
    redis.call('ZREM', cancels, unpack(ended))
  end
end
