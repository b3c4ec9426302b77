-- Moves due jobs to the place in the line that their claims row keeps for them.
local function promote(limit)
  local due = redis.call('ZRANGEBYSCORE', scheduled, '-inf', now_ms, 'LIMIT', 0, limit)
  if #due == 0 then
    return 0
  end
  local rows = redis.call('HMGET', claims, unpack(due))
  local places = {}
  for index, id in ipairs(due) do
    local _, _, _, _, place = parse_row(rows[index] or '', id)
    table.insert(places, whole(place))
    table.insert(places, id)
  end
  redis.call('ZADD', ready, unpack(places))
  redis.call('ZREM', scheduled, unpack(due))
  return #due
end

local function next_due()
  return redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2] or '0'
end
