-- Matching. Items wait in one line for each class, "category:language:level", scored by their place; seats likewise.
-- A desk looks at the heads of the lines that it may take, at most 32 skills x 5 levels, by one call; an item at the
-- heads of the seats that may take it, at most 5. Both pass over what must not meet (an item's author, and whoever skipped it, voted
-- on it or escalated it, as fields "x:MODERATOR" of the item): an item has at most some 120 of those, so its walk is
-- over within WALK. A desk's walk may be longer; it stops after WALK items, notes how far each line was walked, and tick
-- goes on from there. What comes to a line meanwhile looks at the seats itself, so nothing is missed. A request that ends
-- before its walk leaves it to the desk's next one; what came while nobody waited is found by a new walk after that.
local WALK = 200
local LOG_LENGTH = '100000'
local tokens = tonumber(redis.call('HGET', totals, 'tokens') or '0')
seen(totals, 'hash')
if not tokens then
  error('PROTOCOL foreign number of tokens in ' .. totals)
end

-- An item; for_moderator is answered with it: what keeps it from them, if anything does.
local function read_item(id, for_moderator)
  local key = prefix .. 'item:' .. id
  local row = redis.call(
    'HMGET', key, 'state', 'author', 'skill', 'level', 'place', 'token', 'moderator', 'since', 'votes', 'skips',
    'x:' .. (for_moderator or '')
  )
  seen(key, 'hash')
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
  return item, row[11]
end

local function note(event, item, token, moderator)
  write('XADD', log, {
    'MAXLEN', '~', LOG_LENGTH, '*', 'event', event, 'item', item.id, 'token', token, 'moderator', moderator, 'at', now,
  })
end

-- The new lock; the token is never used again.
local function assign(item, desk)
  tokens = tokens + 1
  local number = whole(tokens)
  local token = nonce .. '.' .. number
  write('HSET', totals, {'tokens', number})
  write('HSET', item.key, {'state', 'assigned', 'token', token, 'moderator', desk.name, 'by', desk.by, 'since', now})
  write('ZADD', locks, whole(now_ms + lock_ms), item.id)
  write('ZADD', prefix .. 'held:' .. desk.name, now, item.id)
  if item.state == 'waiting' then
    move_in_line(item, 'ZREM', item.id)
    write('ZREM', waiting, item.id)
  end
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
  seen(key, 'zset')
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

-- The item, if a desk may take it, beside those taken in this step.
local function takeable(id, desk, taken)
  if taken[id] then
    return nil
  end
  local item, kept = read_item(id, desk.name)
  return item and item.state == 'waiting' and item.author ~= desk.name and not kept and item or nil
end

-- The entries of the lines that have these heads; goes_on: from where an earlier walk stopped.
local function lines_of(desk, rows, goes_on)
  local entries = {}
  for index, skill in ipairs(desk.skills) do
    local others = rows[index] or ''
    for _ = 1, LEVELS do
      if others == '' then
        break
      end
      local place, id, level
      place, id, level, others = split_row(others)
      local class = skill .. ':' .. level
      local one = {key = prefix .. 'line:' .. class, rank = 0, name = id, score = place}
      local passed = goes_on and level <= desk.level and redis.call('HGET', prefix .. 'walk:' .. desk.name, class)
      if passed then
        one = entry(one.key, walked(one.key, passed))
      end
      one.class = class
      if one.name and level <= desk.level then
        table.insert(entries, one)
      end
    end
  end
  return entries
end

-- The item that has waited longest of those that a desk may take; goes_on: from where an earlier walk stopped.
local function next_item(desk, taken, goes_on)
  local rows = rows_of(desk)
  if not goes_on or desk.partial then -- most often it is the first of all heads
    local id = first_head(desk, rows)
    local item = id and takeable(id, desk, taken)
    if item then
      return item
    end
  end
  local entries = lines_of(desk, rows, goes_on)
  for _ = 1, WALK do
    local first = first_of(entries)
    if not first then
      local partial = desk.partial
      stop_walk(desk)
      if partial then
        desk.walks = true
        write('ZADD', walks, now, desk.name)
      end
      return nil
    end
    local item = takeable(first.name, desk, taken)
    if item then
      return item
    end
    advance(first)
  end
  desk.walks = true
  write('ZADD', walks, now, desk.name)
  for _, one in ipairs(entries) do
    if one.passed then
      write('HSET', prefix .. 'walk:' .. desk.name, {one.class, whole(one.passed_score) .. ' ' .. one.passed})
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
    write('HSET', item.key, {'state', 'waiting'})
    if item.token then
      write('HDEL', item.key, {'token', 'moderator', 'since'})
    end
    move_in_line(item, 'ZADD', whole(item.place), item.id)
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
