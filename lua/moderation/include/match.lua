-- Matching. Items wait in one line for each class, "category:language:level", scored by their place; seats likewise.
-- A desk looks at the heads of the lines that it may take, at most 32 skills x 5 levels; an item at the heads of the
-- seats that may take it, at most 5. Both pass over what must not meet (an item's author, and whoever skipped it, voted
-- on it or escalated it, as fields "x:MODERATOR" of the item): an item has at most some 120 of those, so its walk is
-- over within WALK. A desk's walk may be longer; it stops after WALK items, notes how far each line was walked, and tick
-- goes on from there. What comes to a line meanwhile looks at the seats itself, so nothing is missed.
local LEVELS, WALK = 5, 200
local LOG_LENGTH = 100000
local tokens = tonumber(redis.call('HGET', totals, 'tokens') or '0')
if not tokens then
  error('PROTOCOL foreign number of tokens in ' .. totals)
end

local function read_item(id)
  local key = prefix .. 'item:' .. id
  local row = redis.call(
    'HMGET', key, 'state', 'author', 'skill', 'level', 'place', 'token', 'moderator', 'since', 'votes', 'skips'
  )
  if not row[1] then
    return nil
  end
  local item = {
    id = id, key = key, state = row[1], author = row[2], skill = row[3], level = tonumber(row[4]), place = tonumber(row[5]),
    token = row[6], moderator = row[7], since = row[8], votes = row[9] or '', skips = tonumber(row[10] or '0'),
  }
  if not (item.author and item.skill and item.level and item.place and item.skips) then
    error('PROTOCOL foreign row in ' .. key)
  end
  return item
end

local function line_of(item)
  return prefix .. 'line:' .. item.skill .. ':' .. item.level
end

local function note(event, item, token, moderator)
  write(
    'XADD', log, 'MAXLEN', '~', LOG_LENGTH, '*', 'event', event, 'item', item.id, 'token', token, 'moderator', moderator,
    'at', now
  )
end

-- The new lock; the token is never used again.
local function assign(item, desk)
  tokens = tokens + 1
  local token = nonce .. '.' .. whole(tokens)
  write('HSET', totals, 'tokens', whole(tokens))
  write('HSET', item.key, 'state', 'assigned', 'token', token, 'moderator', desk.name, 'since', now)
  write('ZADD', locks, whole(now_ms + lock_ms), item.id)
  write('ZADD', prefix .. 'held:' .. desk.name, now, item.id)
  write('ZREM', line_of(item), item.id)
  write('ZREM', waiting, item.id)
  note('assigned', item, token, desk.name)
  desk.held = desk.held + 1
  if desk.kind == 'http' then
    desk.by = '' -- one item answers a request
    write('ZREM', asks, desk.name)
  end
end

-- The entry of a line or of seats at a rank, if there is one.
local function entry(key, rank)
  local found = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
  return {key = key, rank = rank, name = found[1], score = tonumber(found[2])}
end

local function first_of(entries)
  local first
  for _, one in ipairs(entries) do
    local earlier = one.name and (not first or one.score < first.score or (one.score == first.score and one.name < first.name))
    first = earlier and one or first
  end
  return first
end

local function advance(one)
  local found = entry(one.key, one.rank + 1)
  one.passed, one.passed_score = one.name, one.score
  one.rank, one.name, one.score = found.rank, found.name, found.score
end

-- The desk that has waited longest of those that may take an item.
local function longest_waiting(item)
  local entries = {}
  for level = item.level, LEVELS do
    table.insert(entries, entry(prefix .. 'seats:' .. item.skill .. ':' .. level, 0))
  end
  for _ = 1, WALK do
    local first = first_of(entries)
    if not first then
      return nil
    end
    local moderator = first.name
    if moderator ~= item.author and moderator ~= item.not_for and redis.call('HEXISTS', item.key, 'x:' .. moderator) == 0 then
      local desk = read_desk(moderator)
      if desk and has_room(desk) then
        return desk
      end
    end
    advance(first)
  end
end

-- Where the walk of a line goes on: after the last that was passed, or from its score where that has gone.
local function walked(key, passed)
  local place, id = string.match(passed or '', '^(%d+) (.*)$')
  if not place then
    return 0
  end
  local at = redis.call('ZSCORE', key, id)
  if at and tonumber(at) == tonumber(place) then
    return redis.call('ZRANK', key, id) + 1
  end
  return redis.call('ZCOUNT', key, '-inf', '(' .. place)
end

-- The item that has waited longest of those that a desk may take, beside those taken in this step; goes_on: from where
-- an earlier walk stopped.
local function next_item(desk, taken, goes_on)
  local entries = {}
  for _, skill in ipairs(desk.skills) do
    for level = 1, desk.level do
      local key = prefix .. 'line:' .. skill .. ':' .. level
      local passed = goes_on and redis.call('HGET', prefix .. 'walk:' .. desk.name, key)
      local one = entry(key, passed and walked(key, passed) or 0)
      if one.name then
        table.insert(entries, one)
      end
    end
  end
  for _ = 1, WALK do
    local first = first_of(entries)
    if not first then
      stop_walk(desk)
      return nil
    end
    if not taken[first.name] then
      local key = prefix .. 'item:' .. first.name
      local row = redis.call('HMGET', key, 'state', 'author', 'x:' .. desk.name)
      if row[1] == 'waiting' and row[2] ~= desk.name and not row[3] then
        return read_item(first.name)
      end
    end
    advance(first)
  end
  desk.walks = true
  write('ZADD', walks, now, desk.name)
  for _, one in ipairs(entries) do
    if one.passed then
      write('HSET', prefix .. 'walk:' .. desk.name, one.key, whole(one.passed_score) .. ' ' .. one.passed)
    end
  end
end

-- Gives a desk what it may take, and a seat while it has room left.
local function serve_desk(desk, goes_on)
  local taken, got = {}, false
  if not goes_on then
    stop_walk(desk)
  end
  for _ = desk.held + 1, desk.holds do
    local item = has_room(desk) and next_item(desk, taken, goes_on)
    if not item then
      break
    end
    taken[item.id], got = true, true
    assign(item, desk)
  end
  if not has_room(desk) then
    unseat(desk)
  elseif got or desk.since == '' then
    seat(desk)
  end
end

-- Gives an item that stands in no line to the desk that has waited longest for it, else puts it at its place.
local function place_item(item)
  local desk = longest_waiting(item)
  if desk then
    assign(item, desk)
    if has_room(desk) then
      seat(desk)
    else
      unseat(desk)
    end
    save_desk(desk)
  else
    write('HSET', item.key, 'state', 'waiting')
    write('HDEL', item.key, 'token', 'moderator', 'since')
    write('ZADD', line_of(item), whole(item.place), item.id)
    write('ZADD', waiting, whole(item.place), item.id)
  end
end

-- Takes an item from its holder, to whom `held` is counted no more; what becomes of it is written by the caller.
local function unlock(item, event)
  local desk = read_desk(item.moderator)
  write('ZREM', locks, item.id)
  write('ZREM', prefix .. 'held:' .. item.moderator, item.id)
  note(event, item, item.token, item.moderator)
  if desk then
    desk.held = desk.held - 1
    save_desk(desk)
  end
  return desk
end
