"""Bilingual word lists, by category."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Word:
    """One word in both languages."""

    english: str
    chinese: str
    category: str
    """A key of `CATEGORIES`."""


@dataclass(frozen=True, slots=True)
class Category:
    """What the words of one list are, in both languages."""

    english: str
    chinese: str
    countable: bool
    """Whether the English words take `a` or `an`."""


CATEGORIES = {
    "animal": Category("animal", "动物", True),
    "bird": Category("bird", "鸟", True),
    "fruit": Category("fruit", "水果", True),
    "vegetable": Category("vegetable", "蔬菜", True),
    "drink": Category("drink", "饮料", False),
    "food": Category("food", "食物", False),
    "colour": Category("colour", "颜色", False),
    "flower": Category("flower", "花", True),
    "clothing": Category("piece of clothing", "衣物", True),
    "furniture": Category("piece of furniture", "家具", True),
    "tool": Category("tool", "工具", True),
    "vehicle": Category("vehicle", "交通工具", True),
    "instrument": Category("musical instrument", "乐器", True),
    "place": Category("place", "地方", True),
    "person": Category("person", "人", True),
    "body": Category("part of the body", "身体部位", True),
    "sport": Category("sport", "运动", False),
    "metal": Category("metal", "金属", False),
}

_LISTS = {
    "animal": (
        "cat=猫 dog=狗 horse=马 cow=牛 sheep=羊 pig=猪 rabbit=兔子 mouse=老鼠 tiger=老虎 lion=狮子 elephant=大象 "
        "monkey=猴子 bear=熊 panda=熊猫 fox=狐狸 wolf=狼 deer=鹿 snake=蛇 frog=青蛙 turtle=乌龟 fish=鱼 whale=鲸鱼 "
        "bee=蜜蜂 ant=蚂蚁 spider=蜘蛛 butterfly=蝴蝶 goat=山羊 camel=骆驼 giraffe=长颈鹿 zebra=斑马"
    ),
    "bird": "duck=鸭子 chicken=鸡 goose=鹅 eagle=老鹰 owl=猫头鹰 crow=乌鸦 parrot=鹦鹉 swan=天鹅 penguin=企鹅 sparrow=麻雀",
    "fruit": (
        "apple=苹果 banana=香蕉 pear=梨 peach=桃子 grape=葡萄 orange=橙子 lemon=柠檬 strawberry=草莓 cherry=樱桃 "
        "watermelon=西瓜 mango=芒果 pineapple=菠萝"
    ),
    "vegetable": "carrot=胡萝卜 potato=土豆 tomato=西红柿 onion=洋葱 cabbage=卷心菜 cucumber=黄瓜 pumpkin=南瓜 mushroom=蘑菇",
    "drink": "water=水 milk=牛奶 tea=茶 coffee=咖啡 juice=果汁 beer=啤酒 wine=葡萄酒",
    "food": "bread=面包 rice=米饭 soup=汤 cake=蛋糕 cheese=奶酪 meat=肉 noodles=面条 sugar=糖 salt=盐 honey=蜂蜜 chocolate=巧克力",
    "colour": "red=红色 blue=蓝色 green=绿色 yellow=黄色 black=黑色 white=白色 purple=紫色 pink=粉色 brown=棕色 grey=灰色",
    "flower": "rose=玫瑰 lily=百合 tulip=郁金香 sunflower=向日葵 lotus=荷花 orchid=兰花",
    "clothing": "hat=帽子 shirt=衬衫 coat=外套 dress=裙子 shoe=鞋子 sock=袜子 glove=手套 scarf=围巾",
    "furniture": "table=桌子 chair=椅子 bed=床 sofa=沙发 desk=书桌 shelf=架子",
    "tool": "hammer=锤子 saw=锯子 knife=刀 spoon=勺子 fork=叉子 brush=刷子 needle=针 broom=扫帚 key=钥匙 umbrella=雨伞",
    "vehicle": "car=汽车 bus=公共汽车 train=火车 plane=飞机 ship=轮船 bicycle=自行车 boat=小船 truck=卡车 rocket=火箭",
    "instrument": "piano=钢琴 guitar=吉他 violin=小提琴 drum=鼓 flute=笛子 trumpet=小号",
    "place": (
        "school=学校 hospital=医院 park=公园 library=图书馆 market=市场 river=河 mountain=山 forest=森林 garden=花园 "
        "house=房子 kitchen=厨房 city=城市 village=村庄 farm=农场 island=岛 beach=海滩 bridge=桥 museum=博物馆"
    ),
    "person": (
        "teacher=老师 doctor=医生 farmer=农民 cook=厨师 driver=司机 student=学生 friend=朋友 mother=妈妈 father=爸爸 "
        "brother=哥哥 sister=姐姐 king=国王 queen=女王 soldier=士兵 singer=歌手 painter=画家 writer=作家 nurse=护士"
    ),
    "body": "head=头 hand=手 foot=脚 eye=眼睛 ear=耳朵 nose=鼻子 mouth=嘴 arm=胳膊 leg=腿 heart=心脏 tooth=牙齿 finger=手指",
    "sport": "football=足球 basketball=篮球 tennis=网球 swimming=游泳 running=跑步 skiing=滑雪",
    "metal": "gold=金 silver=银 iron=铁 copper=铜",
}

# Words that the translation, spelling and story families use besides the lists above.
_OTHERS = (
    "book=书 letter=信 paper=纸 pen=钢笔 picture=图片 music=音乐 story=故事 song=歌曲 word=词 language=语言 name=名字 "
    "number=数字 sun=太阳 moon=月亮 star=星星 sky=天空 rain=雨 snow=雪 wind=风 cloud=云 sea=海 fire=火 stone=石头 "
    "tree=树 grass=草 flower=花 leaf=叶子 day=天 night=夜晚 morning=早上 evening=晚上 year=年 month=月 week=星期 "
    "hour=小时 minute=分钟 spring=春天 summer=夏天 autumn=秋天 winter=冬天 door=门 window=窗户 wall=墙 road=路 "
    "money=钱 time=时间 love=爱 dream=梦 work=工作 game=游戏 gift=礼物 world=世界 computer=电脑 telephone=电话 "
    "box=盒子 cup=杯子 bottle=瓶子 clock=钟 mirror=镜子 lamp=灯 bag=包 map=地图 ball=球 "
    "eat=吃 drink=喝 sleep=睡觉 run=跑 walk=走 sing=唱歌 dance=跳舞 read=读 write=写 listen=听 speak=说 see=看见 "
    "swim=游 fly=飞 jump=跳 buy=买 sell=卖 open=打开 close=关闭 help=帮助 learn=学习 teach=教 think=想 "
    "happy=高兴 sad=难过 tired=累 hungry=饿 thirsty=渴 angry=生气 beautiful=美丽 clever=聪明 brave=勇敢 kind=善良 "
    "hello=你好 thanks=谢谢 goodbye=再见 sorry=对不起 yes=是 no=不 today=今天 tomorrow=明天 yesterday=昨天 "
    "family=家庭 child=孩子 boy=男孩 girl=女孩 man=男人 woman=女人"
)


@cache
def words_of(category: str) -> tuple[Word, ...]:
    """Returns the words of one category, in the order of the table."""
    return _parse(_LISTS[category], category)


@cache
def all_words() -> tuple[Word, ...]:
    """Returns every word once, by its English spelling; categories come before the other words."""
    listed = [word for category in CATEGORIES for word in words_of(category)]
    seen: dict[str, Word] = {}
    for word in (*listed, *_parse(_OTHERS, "")):
        seen.setdefault(word.english, word)
    return tuple(seen.values())


def with_article(noun: str) -> str:
    """Puts `a` or `an` before an English noun, by its first letter."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _parse(pairs: str, category: str) -> tuple[Word, ...]:
    split = (pair.split("=") for pair in pairs.split())
    return tuple(Word(english, chinese, category) for english, chinese in split)
